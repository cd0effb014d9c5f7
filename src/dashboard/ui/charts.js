// Charts of the history, drawn by uPlot, each with its latest figures in words.

import { el, panel, setText } from "./dom.js";
import { bytes, millis, rate, whole } from "./text.js";

const SPAN_S = 5;
const HEIGHT = 190;
const perSecond = (name) => (point) => (point[name] ?? 0) / SPAN_S;
const hits = (point) => ["hits_memory", "hits_disk", "hits_peer", "hits_object"].reduce((sum, name) => sum + (point[name] ?? 0), 0);
const quantile = (name, at) => (point) => point[name]?.[at] ?? null;

const CHARTS = [
  {
    title: "Requests a second", shown: rate,
    lines: [["hits", (point) => hits(point) / SPAN_S], ["Redis hits", perSecond("resp_hits")], ["Redis misses", perSecond("resp_misses")],
      ["waited", perSecond("coalesced")], ["compiled", perSecond("compiled")], ["failed", perSecond("failed")]],
  },
  {
    title: "Hits a second by tier", shown: rate,
    lines: [["memory", perSecond("hits_memory")], ["disk", perSecond("hits_disk")], ["peer", perSecond("hits_peer")], ["object", perSecond("hits_object")]],
  },
  {
    title: "Time to answer a hit", shown: millis, log: true,
    lines: [["half", quantile("hit_ms", 0)], ["95 %", quantile("hit_ms", 1)], ["99 %", quantile("hit_ms", 2)]],
  },
  {
    title: "Time to compile or to wait for it", shown: millis, log: true,
    lines: [["half", quantile("compile_ms", 0)], ["95 %", quantile("compile_ms", 1)], ["99 %", quantile("compile_ms", 2)]],
  },
  { title: "Compiles under way", shown: whole, lines: [["compiling", (point) => point.compiling], ["waiting", (point) => point.waiting]] },
  { title: "Bytes held", shown: bytes, lines: [["memory", (point) => point.memory_bytes], ["disk", (point) => point.disk_bytes]] },
];

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

class Chart {
  constructor(of) {
    this.of = of;
    this.history = [];
    this.plot = null;
    this.caption = el("figcaption");
    this.area = el("div", { class: "chart", "aria-hidden": "true" });
    this.element = panel(of.title, "third", el("figure", {}, this.area, this.caption));
    new ResizeObserver(() => this.fit()).observe(this.area);
  }

  show(history) {
    this.history = history;
    this.draw();
    const last = history[history.length - 1];
    const words = this.of.lines.map(([name, value]) => `${name} ${last ? this.of.shown(value(last)) : "–"}`);
    setText(this.caption, history.length > 0 ? `Last 5 s: ${words.join(", ")}` : "The first figures come after five seconds.");
  }

  // A span without figures is a gap, not a line across it.
  data() {
    const columns = [[], ...this.of.lines.map(() => [])];
    let before = null;
    for (const point of this.history) {
      const at = point.at_unix_ms / 1000;
      if (before !== null && at - before > SPAN_S * 1.5) {
        columns[0].push(before + SPAN_S);
        this.of.lines.forEach((_, line) => columns[line + 1].push(null));
      }
      columns[0].push(at);
      this.of.lines.forEach(([, value], line) => columns[line + 1].push(value(point)));
      before = at;
    }
    return columns;
  }

  draw() {
    if (this.plot) this.plot.setData(this.data());
    else if (this.area.clientWidth > 0 && this.history.length > 0) this.make();
  }

  make() {
    const axis = { stroke: color("--faint"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line"), width: 1 } };
    const shown = this.of.shown;
    const range = this.of.log
      ? (_, low, high) => (low == null ? [0.1, 1000] : window.uPlot.rangeLog(low, high, 10, true))
      : (_, low, high) => [0, high > 0 ? high * 1.1 : 1];
    const series = this.of.lines.map(([label], at) => ({
      label, stroke: color(`--c${at}`), width: 1.5, points: { size: 4 }, value: (_, value) => (value == null ? "–" : shown(value)),
    }));
    this.plot = new window.uPlot({
      width: this.area.clientWidth, height: HEIGHT, padding: [8, 8, 0, 0],
      scales: { x: { time: true }, y: { distr: this.of.log ? 3 : 1, range } },
      axes: [axis, { ...axis, size: 76, values: (_, ticks) => ticks.map((tick) => (tick == null ? "" : shown(tick))) }],
      series: [{}, ...series],
    }, this.data(), this.area);
  }

  fit() {
    const width = this.area.clientWidth;
    if (width === 0) return;
    if (this.plot) this.plot.setSize({ width, height: HEIGHT });
    else this.draw();
  }

  // In the colours of the other scheme.
  again() {
    this.plot?.destroy();
    this.plot = null;
    this.draw();
  }
}

export class Charts {
  constructor() {
    this.charts = CHARTS.map((of) => new Chart(of));
    this.elements = this.charts.map((chart) => chart.element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.charts.forEach((chart) => chart.again()));
  }

  show(history) {
    this.charts.forEach((chart) => chart.show(history));
  }
}
