// The page of one artifact.

import { Table, artifactLink, el, facts, panel } from "./dom.js";
import { bytes, seconds, short, when, whole } from "./text.js";

const MOST = 500;

// The page of `key`; what cannot be told says so.
export async function artifactPage(key, nodes) {
  const back = el("p", {}, el("a", { href: "#/" }, "← The cluster"));
  const heading = el("h1", { tabindex: "-1" }, `Artifact ${short(key)}`);
  try {
    const answer = await fetch(`../api/v1/artifacts/${encodeURIComponent(key)}`, { cache: "no-store" });
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.error ?? `HTTP ${answer.status}`);
    return el("div", {}, back, heading, el("div", { class: "grid" }, ...panels(told, nodes)));
  } catch (error) {
    return el("div", {}, back, heading, el("p", { role: "alert" }, `Nothing to show: ${error.message}.`));
  }
}

function panels(told, nodes) {
  const parts = [];
  const stored = told.stored;
  const manifest = stored?.manifest;
  if (told.failure) {
    parts.push(panel("Failure", "", facts([["Code", told.failure.code], ["Kind", told.failure.kind], ["Message", told.failure.message]])));
  }
  if (stored) {
    parts.push(panel("Artifact", "half", summary(told.key, stored, manifest)), holders(stored, nodes));
  }
  if (manifest) {
    parts.push(components(manifest), files(manifest));
    if (manifest.pieces.length > 0) parts.push(pieces(manifest));
  }
  parts.push(history(told, stored, manifest));
  return parts;
}

function summary(key, stored, manifest) {
  const check = manifest?.check;
  const checked = check?.Passed ? `right: off by ${check.Passed.relative_error.toExponential(2)} of at most ${check.Passed.limit.toExponential(2)}`
    : check?.Not ? `not run: ${check.Not.why}` : "nobody looked";
  const versions = Object.entries(manifest?.fingerprint.versions ?? {}).map(([tool, version]) => `${tool} ${version}`);
  return facts([
    ["Key", el("code", {}, key)], ["Name", manifest?.label || "–"], ["Namespace", manifest?.namespace ?? "–"],
    ["Compiler", manifest ? [manifest.fingerprint.compiler, ...versions].join(", ") : "–"], ["Target", manifest?.target ?? "–"],
    ["Hits", whole(stored.hits)], ["A compile takes", seconds(stored.compile_seconds)], ["Saved", seconds(stored.compile_seconds * stored.hits)],
    ["Size", `${bytes(stored.bytes)} in ${whole(manifest?.files.length ?? 0)} files`], ["Pack", el("code", {}, stored.pack)],
    ["Epoch", whole(stored.epoch)], ["Pinned", stored.pinned ? "yes" : "no"], ["In the object store", stored.object ? "yes" : "no"],
    ["Output checked", checked],
    ["Signature", stored.signed ? `of node ${stored.signer}, holds` : `of node ${stored.signer}, DOES NOT HOLD: nothing here can be relied on`],
  ]);
}

function table(title, size, caption, columns, rows, empty) {
  const shown = new Table(caption, columns, empty);
  shown.show(rows.slice(0, MOST).map((cells, at) => ({ id: at, cells })));
  const rest = rows.length > MOST ? el("p", { class: "note" }, `And ${whole(rows.length - MOST)} more.`) : null;
  return panel(title, size, shown.element, rest);
}

function holders(stored, nodes) {
  const state = (id) => nodes.find((node) => node.id === id)?.state ?? "no member";
  const rows = stored.holders.map((id) => [id, { text: state(id), class: state(id) }]);
  return table("Holders", "half", "Nodes believed to have its bytes", [{ name: "Node" }, { name: "State" }], rows, "No node is known to have its bytes.");
}

function components(manifest) {
  const rows = manifest.components.flatMap((component) => component.fields.map((field) => [component.name, field.name, field.value, field.derived ? "follows from others" : ""]));
  return table("Components", "", "What decided the key", [{ name: "Component" }, { name: "Field" }, { name: "Value", wrap: true }, { name: "" }], rows, "It has no components.");
}

function files(manifest) {
  const rows = manifest.files.map((file) => [file.path, bytes(file.size), { text: short(file.digest), class: "key", title: file.digest }]);
  return table("Files", "half", "What is in it", [{ name: "Path", wrap: true }, { name: "Size", number: true }, { name: "Digest" }], rows, "It has no files.");
}

function pieces(manifest) {
  const rows = manifest.pieces.map((piece) => [{ text: short(piece.key), href: artifactLink(piece.key), class: "key", title: piece.key }, bytes(piece.pack_size)]);
  return table("Pieces", "half", "What it is stitched of", [{ name: "Key" }, { name: "Size", number: true }], rows, "");
}

function history(told, stored, manifest) {
  const rows = told.history.map((change) => [when(change.at_unix_ms), change.what]);
  if (manifest) rows.unshift([when(manifest.created_unix_ms), `made by node ${manifest.producer} in ${seconds(stored.compile_seconds)}`]);
  return table("History", "half", "What became of it, as far as this node saw", [{ name: "When" }, { name: "What", wrap: true }], rows, "This node saw no change of it.");
}
