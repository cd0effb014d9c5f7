#!/usr/bin/env python3
"""Checks that the page of the compilation module maps two documents to code and test.

The documents are not in the repository: what they name is the data below. Part of
`make check`; needs neither torch nor the package's dependencies.
Invariant: a name that is missing from the code, has other parameters or defaults,
has no row, or whose row names code or a test that is not there, is a failure.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = "kiln_torch/compilation"

# The API document: a name, and its parameters with their defaults where it has them.
API: dict[str, str | None] = {
    "CompilationConfig": None,
    "CompilationConfig.use_inductor": None,
    "CompilationConfig.compilation_level": None,
    "CompilerManager": None,
    "CompilerManager.__init__": (
        "compilation_config, cache_dir='./compilation_cache', disable_cache=False"
    ),
    "CompilerManager.compilation_config": None,
    "CompilerManager.disable_cache": None,
    "CompilerManager.cache_dir": None,
    "CompilerManager.cache": None,
    "CompilerManager.compiler": None,
    "CompilerManager.compilation_counter": None,
    "CompilerManager.performance_monitor": None,
    "CompilerManager.compile": (
        "graph, example_inputs, additional_inductor_config=None, compilation_config=None, "
        "graph_index=0, num_graphs=1, runtime_shape=None"
    ),
    "CompilerManager.load": "graph, example_inputs, graph_index, runtime_shape=None",
    "CompilerManager.save": (
        "handle, graph, example_inputs, graph_index, runtime_shape, compiled_graph"
    ),
    "CompilerManager._compute_hash_keys": (
        "graph, example_inputs, graph_index, runtime_shape=None"
    ),
    "CompilerManager._generate_cache_key": "graph, example_inputs, runtime_shape",
    "CompilerManager._log_cache_hit": "start_time, graph_index, num_graphs",
    "KilnBackend": None,
    "KilnBackend.__call__": "graph, example_inputs",
    "KilnBackend.compiler_manager": None,
    "KilnBackend.compilation_config": None,
    "KilnBackend.configure_post_pass": "",
    "KilnBackend._should_use_piecewise_compilation": "graph",
    "KilnBackend._piecewise_compile": "graph, example_inputs",
    "KilnBackend._full_compile": "graph, example_inputs",
    "KilnBackend._get_inductor_config": "",
    "CompilerInterface": None,
    "CompilerInterface.compile": (
        "graph, example_inputs, compiler_config, runtime_shape=None, key=None"
    ),
    "CompilerInterface.load": ("handle, graph, example_inputs, graph_index, runtime_shape=None"),
    "make_compiler": "compilation_config, counter=None",
    "InductorAdaptor": None,
    "InductorAdaptor.compile": (
        "graph, example_inputs, compiler_config, runtime_shape=None, key=None"
    ),
    "InductorAdaptor._merge_inductor_config": "user_config, runtime_shape",
    "InductorAdaptor._create_inductor_handle": None,
    "InductorAdaptor.compute_hash": "vllm_config",
    "InductorAdaptor._get_inductor_factor": "factor",
    "InductorStandaloneAdaptor": None,
    "InductorStandaloneAdaptor.compile": (
        "graph, example_inputs, compiler_config, runtime_shape=None, key=None"
    ),
    "InductorStandaloneAdaptor._prepare_standalone_config": "compiler_config, runtime_shape",
    "InductorStandaloneAdaptor.load": (
        "handle, graph, example_inputs, graph_index, runtime_shape=None"
    ),
    "EagerAdaptor": None,
    "NativeAdaptor": None,
    "CompilationError": None,
    "CacheCorruptedError": None,
    "IncompatibleConfigError": None,
    "TimeoutError": None,
    "InductorNotAvailableError": None,
    "robust_compile": (
        "graph, example_inputs, config, compiler_manager=None, additional_inductor_config=None, "
        "runtime_shape=None"
    ),
    "CompilationCounter": None,
    "CompilationCounter.num_backend_compilations": None,
    "CompilationCounter.num_inductor_compiles": None,
    "CompilationCounter.num_cache_hits": None,
    "CompilationCounter.num_cache_misses": None,
    "CompilationCounter.num_compiled_artifacts_saved": None,
    "CompilationCounter.num_compiled_artifacts_loaded": None,
    "CompilationCounter.cache_hit_rate": None,
    "compilation_counter": None,
    "PerformanceMonitor": None,
    "PerformanceMonitor.record_compilation_time": "seconds",
    "PerformanceMonitor.avg_compilation_time": None,
    "PerformanceMonitor.avg_cache_load_time": None,
    "PerformanceMonitor.total_compilation_time": None,
    "performance_monitor": None,
    "get_compilation_metrics": "",
    "get_cache_disk_usage": "",
    "get_compilation_memory_usage": "",
    "get_active_compiler_count": "",
    "compile_cache_disabled": "",
}

# The arrows of the API's diagram and of the sequence document, by section of the table.
ARROWS: dict[str, str] = {
    "The API's diagram": """
        compile record_compilation_start load_from_cache compute_hash lookup_cached_result
        cached_compiled_graph record_cache_hit torch_compile optimize_graph
        generate_cuda_kernels optimized_callable save_to_cache cache_saved compiled_graph""",
    "Scenario 1": """
        __call__ configure_post_pass analyze_graph_complexity select_compilation_strategy
        compile _piecewise_compile _compute_hash_keys record_compilation_start load_from_cache
        check_memory_cache check_disk_cache cache_not_found None InductorAdaptor.compile
        _merge_inductor_config torch.compile fx_graph_optimization lower_to_inductor_ir
        code_generation generate_triton_kernels generate_cpp_wrapper optimize_memory_layout
        compile_and_load_kernels compiled_callable create_compilation_handle
        (compiled_fn,handle) save_to_cache store_in_memory_cache save_to_disk_cache cache_saved
        cache_save_complete record_compilation_complete optimized_model_function""",
    "Scenario 2": """
        _piecewise_compile analyze_graph_for_splitting identify_split_points
        estimate_memory_requirements calculate_complexity_scores split_strategy
        split_graph_into_pieces extract_subgraph create_split_item validate_split_consistency
        List[SplitItem] create_split_graph_module build_connection_graph optimize_data_flow
        stitching_graph_module compile InductorAdaptor.compile compiled_piece
        create_piecewise_callable record_piecewise_compilation_complete
        calculate_parallel_efficiency validate_piecewise_execution test_piece_execution
        verify_output_shapes verify_end_to_end_equivalence piecewise_callable_validated""",
    "Scenario 3": """
        __call__ compile _compute_hash_keys start_cache_lookup_timer MemoryCache.lookup
        compiled_function record_memory_cache_hit update_lru_order optimized_callable None
        DiskCache.lookup check_file_exists file_exists=True load_cache_file cache_data
        validate_cache_integrity check_version_compatibility deserialize_compiled_function store
        apply_lru_eviction_if_needed stored_in_memory record_disk_cache_hit
        record_cache_load_time delete_corrupted_cache initiate_fresh_compilation
        file_exists=False record_cache_miss""",
    "Scenario 4": """
        collect_compilation_metrics calculate_avg_compilation_time calculate_cache_hit_rate
        analyze_compilation_trends performance_metrics collect_resource_usage get_memory_usage
        get_disk_usage get_cpu_utilization resource_metrics detect_performance_anomalies
        investigate_slow_compilation analyze_compilation_bottlenecks
        suggest_optimization_strategies optimization_recommendations send_performance_alert
        alert_sent analyze_cache_efficiency identify_cache_miss_patterns
        suggest_cache_optimizations cache_optimization_plan investigate_memory_usage
        identify_memory_leaks analyze_cache_memory_usage memory_analysis_report
        trigger_memory_optimization adjust_cache_limits trigger_cache_cleanup memory_optimized
        apply_automatic_optimizations adjust_compilation_parallelism
        optimize_cache_eviction_policy tune_inductor_config optimizations_applied
        generate_monitoring_report update_performance_dashboard send_critical_alert
        initiate_emergency_fallback switch_to_eager_mode fallback_activated
        disable_compilation_cache cleanup_corrupted_cache cache_cleanup_complete
        reinitialize_cache_system cache_system_restored""",
    "Recovery": """
        inductor_compilation_error CompilationError handle_compilation_failure
        classify_error_type record_compilation_failure suggest_memory_optimization
        enable_memory_efficient_compilation retry_compile_with_optimization compiled_function
        initiate_fallback_compilation EagerAdaptor.compile eager_function
        identify_unsupported_ops suggest_op_fallback create_mixed_mode_execution
        send_timeout_alert terminate_compilation_process record_fallback_execution
        record_compilation_success""",
}
API_SECTION = "The API"
# What Inductor does inside one call of it.
TORCHS = "torch"

_ROW = re.compile(r"^\| `([^|`]+)` \| ([^|]+) \| ([^|]*) \|$")
_CODE = re.compile(r"`([\w/]+\.py)` `([\w.]+)`")
_TEST = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def problems(root: Path, readme: str) -> list[str]:
    """Return all that is wrong, one line each."""
    code = _defined(root / PACKAGE)
    found = [f"the code has no {name}" for name in API if name not in _flat(code)]
    for name, wanted in API.items():
        have = _flat(code).get(name)
        if wanted is not None and have is not None and have != wanted:
            found.append(f"{name}({have}) is not the document's ({wanted})")
    rows = _rows(readme)
    sections = {API_SECTION: list(API), **{k: v.split() for k, v in ARROWS.items()}}
    for section, names in sections.items():
        have_rows = rows.get(section, {})
        found += [f"{section}: no row for {name}" for name in names if name not in have_rows]
        found += [f"{section}: {name} is in no document" for name in have_rows if name not in names]
    tests = {path.name: path.read_text() for path in (root / "tests").glob("test_*.py")}
    for section, entries in rows.items():
        for name, (where, tested) in entries.items():
            found += [f"{section}: {name}: {why}" for why in _wrong(where, tested, code, tests)]
    return found


def _wrong(
    where: str, tested: str, code: dict[str, dict[str, str | None]], tests: dict[str, str]
) -> list[str]:
    found = []
    places = _CODE.findall(where)
    if not places and not where.startswith(TORCHS):
        found.append(f"{where!r} names no code")
    for file, name in places:
        if name not in code.get(file, {}):
            found.append(f"{file} has no {name}")
    named = _TEST.findall(tested)
    if not named:
        found.append("no test")
    for file, name in named:
        if not re.search(rf"^def {name}\(", tests.get(file, ""), re.MULTILINE):
            found.append(f"there is no test {file}::{name}")
    return found


def _rows(readme: str) -> dict[str, dict[str, tuple[str, str]]]:
    found: dict[str, dict[str, tuple[str, str]]] = {}
    section = ""
    for line in readme.splitlines():
        if line.startswith("### "):
            section = line[4:].strip()
        elif section and (match := _ROW.match(line)):
            name, where, tested = (each.strip() for each in match.groups())
            found.setdefault(section, {})[name] = where, tested
    return found


def _defined(package: Path) -> dict[str, dict[str, str | None]]:
    """Return the names that each file defines, functions with their parameters."""
    return {path.name: _names(ast.parse(path.read_text())) for path in package.glob("*.py")}


def _flat(code: dict[str, dict[str, str | None]]) -> dict[str, str | None]:
    return {name: said for names in code.values() for name, said in names.items()}


def _names(tree: ast.Module) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            is_class = isinstance(node, ast.ClassDef)
            found[node.name] = None if is_class else _parameters(node)  # type: ignore[arg-type]
        for target in _targets(node):
            found[target] = None
        if isinstance(node, ast.ClassDef):
            for each in node.body:
                if isinstance(each, ast.FunctionDef):
                    found[f"{node.name}.{each.name}"] = _parameters(each)
                for target in _targets(each):
                    found[f"{node.name}.{target}"] = None
                for inner in ast.walk(each):
                    for target in _targets(inner):
                        if target.startswith("self."):
                            found[f"{node.name}.{target[5:]}"] = None
    return found


def _targets(node: ast.AST) -> list[str]:
    if isinstance(node, ast.AnnAssign):
        return [ast.unparse(node.target)]
    if isinstance(node, ast.Assign):
        return [ast.unparse(target) for target in node.targets]
    return []


def _parameters(node: ast.FunctionDef) -> str:
    """Return the positional parameters without ``self``, as a caller sees them."""
    names = [each.arg for each in node.args.args]
    defaults = [ast.unparse(each) for each in node.args.defaults]
    given = [""] * (len(names) - len(defaults)) + [f"={each}" for each in defaults]
    return ", ".join(a + b for a, b in zip(names, given) if a != "self")


def main() -> int:
    """Print what is wrong."""
    page = HERE / PACKAGE / "README.md"
    found = problems(HERE, page.read_text())
    for line in found:
        print(f"{page.relative_to(HERE.parent)}: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
