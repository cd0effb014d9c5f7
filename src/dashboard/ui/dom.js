// Elements made of data. What is shown always becomes text: names of labels, namespaces and
// nodes come from whoever asked for an artifact, and are never markup.

// The only attributes that are set, each with a value that this page made.
const ATTRIBUTES = ["class", "id", "scope", "role", "tabindex", "title", "href", "colspan"];

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value == null || value === false) continue;
    if (ATTRIBUTES.includes(name) || name.startsWith("aria-") || name.startsWith("data-")) {
      made.setAttribute(name, value);
    }
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

// Changes the text only where it is another one: a reader's selection and focus stay.
export function setText(node, text) {
  const shown = String(text);
  if (node.textContent !== shown) node.textContent = shown;
}

export function setClass(node, name) {
  if (node.className !== (name ?? "")) node.className = name ?? "";
}

export const artifactLink = (key) => `#/artifact/${encodeURIComponent(key)}`;

// A node's own page; nothing where its address is no plain host and port.
export function nodeLink(address) {
  try {
    const url = new URL(`http://${address}/ui/`);
    const plain = url.pathname === "/ui/" && !url.search && !url.hash && !url.username;
    return plain && address === url.host ? url.href : null;
  } catch {
    return null;
  }
}

// A table whose rows stay the same elements from view to view, so that focus stays as well.
// A column is {name, number, wrap, label}; a row {id, class, cells}; a cell text, or
// {text, href, class, title, data}.
export class Table {
  constructor(caption, columns, empty) {
    this.columns = columns;
    this.rows = new Map();
    this.body = el("tbody");
    const heads = columns.map((column) => el("th", { scope: "col", class: column.number ? "number" : null }, column.name));
    this.table = el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, ...heads)), this.body);
    this.empty = el("p", { class: "empty" }, empty);
    const region = { class: "scroll", role: "region", tabindex: "0", "aria-label": caption };
    this.element = el("div", region, this.table, this.empty);
  }

  show(rows) {
    this.table.hidden = rows.length === 0;
    this.empty.hidden = rows.length > 0;
    const kept = new Set();
    let place = this.body.firstChild;
    for (const row of rows) {
      kept.add(row.id);
      let shown = this.rows.get(row.id);
      if (!shown) {
        shown = this.make();
        this.rows.set(row.id, shown);
      }
      setClass(shown, row.class);
      row.cells.forEach((cell, at) => this.fill(shown.children[at], cell));
      if (shown === place) place = place.nextSibling;
      else this.body.insertBefore(shown, place);
    }
    for (const [id, shown] of this.rows) {
      if (!kept.has(id)) {
        shown.remove();
        this.rows.delete(id);
      }
    }
  }

  make() {
    const row = el("tr");
    this.columns.forEach((column, at) => {
      const kind = [column.number && "number", column.wrap && "wrap", column.label && "label"];
      const cell = el(at === 0 ? "th" : "td", { scope: at === 0 ? "row" : null });
      cell.dataset.kind = kind.filter(Boolean).join(" ");
      row.append(cell);
    });
    return row;
  }

  fill(shown, cell) {
    const { text, href, class: name, title, data } = typeof cell === "object" && cell !== null ? cell : { text: cell };
    setClass(shown, [shown.dataset.kind, name].filter(Boolean).join(" "));
    for (const [key, value] of Object.entries(data ?? {})) shown.dataset[key] = value;
    if (title != null) shown.title = title;
    if (!href) {
      setText(shown, text ?? "–");
      return;
    }
    let link = shown.firstElementChild;
    if (!link) {
      shown.textContent = "";
      link = el("a");
      shown.append(link);
    }
    if (link.getAttribute("href") !== href) link.setAttribute("href", href);
    setText(link, text);
  }
}

export function panel(title, size, ...children) {
  const id = `panel-${title.toLowerCase().replace(/[^a-z]+/g, "-")}`;
  const heading = el("h2", { id }, title);
  return el("section", { class: `panel ${size}`, "aria-labelledby": id }, heading, ...children);
}

export function facts(pairs) {
  const parts = pairs.flatMap(([name, value]) => [
    el("dt", {}, name),
    el("dd", {}, value instanceof Node ? value : String(value)),
  ]);
  return el("dl", { class: "facts" }, ...parts);
}
