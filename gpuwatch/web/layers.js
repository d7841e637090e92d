// The layers of a run as a table, and the histogram of the one that is chosen.

import { Curve } from "./curve.js";
import { element, mark, say } from "./element.js";
import { number, percent, whole } from "./quantities.js";
import { alarm, SortableTable } from "./sortable.js";

//: A table of 2,000 layers takes the daemon milliseconds: it is asked for this often at most.
const EVERY_MS = 4000;
const FIELDS = ["index", "name", "elements", "norm", "absmax", "zeros", "nonfinite", "weight", "update"];
const number_ = (field) => ({ value: (row) => row[field], text: (row) => (row[field] === null ? "" : number(row[field])), numeric: true });
const COLUMNS = [
  { name: "layer", value: (row) => row.index, text: (row) => row.name, ascending: true, always: true },
  { name: "elements", value: (row) => row.elements, text: (row) => whole(row.elements), numeric: true },
  { name: "gradient norm", ...number_("norm") },
  { name: "largest", ...number_("absmax") },
  { name: "zeros", value: (row) => row.zeros, text: (row) => (row.zeros === null ? "" : percent(row.zeros)), numeric: true },
  { name: "not finite", value: (row) => row.nonfinite, text: (row) => (row.nonfinite ? whole(row.nonfinite) : ""), numeric: true },
  { name: "weight norm", ...number_("weight") },
  { name: "update ratio", ...number_("update") },
];

export class Layers {
  constructor(query) {
    this.query = query;
    this.findings = new Map(); // layer -> findings that are open
    this.chosen = null;
    this.rows = [];
    this.askedAt = -EVERY_MS;
    const filter = { type: "search", placeholder: "part of a name", "aria-label": "filter the layers" };
    this.filter = element("input", { ...filter, oninput: () => this.show() });
    this.about = element("p", { class: "about" });
    this.table = new SortableTable(COLUMNS, (row) => String(row.index), { decorate: (...cell) => this.decorate(...cell), label: "layers" });
    this.histogram = element("div", { class: "histogram" });
    this.root = element(
      "section",
      { "aria-label": "Layers", hidden: true },
      element("h2", {}, "Layers"), this.about, this.filter, this.histogram, this.table.root,
    );
  }

  follow() {
    clearTimeout(this.timer);
    const wait = this.askedAt + EVERY_MS - performance.now();
    this.timer = setTimeout(() => this.ask(), Math.max(0, wait));
  }

  async ask() {
    this.askedAt = performance.now();
    try {
      const response = await fetch(`api/layers?${this.query}`);
      if (!response.ok) return;
      const { layers, measured_step: measured } = await response.json();
      if (this.closed) return;
      this.rows = layers.map((row) => Object.fromEntries(FIELDS.map((field, index) => [field, row[index]])));
      this.root.hidden = layers.length === 0;
      const what = "Gradients (unscaled, before clipping), weights and updates";
      say(this.about, `${what} as of step ${whole(measured)}. A layer's name opens its histogram.`);
      this.show();
      if (this.chosen !== null) await this.draw();
    } catch {
      // the feed says that the daemon is away
    }
  }

  mark(findings) {
    this.findings = new Map();
    for (const finding of findings.filter(({ state, layer }) => state !== "closed" && layer)) {
      this.findings.set(finding.layer, [...(this.findings.get(finding.layer) ?? []), finding]);
    }
    this.show();
  }

  show() {
    const wanted = this.filter.value.toLowerCase();
    this.table.show(this.rows.filter((row) => row.name.toLowerCase().includes(wanted)));
  }

  decorate(cell, column, row) {
    if (column.name === "not finite") alarm(cell, row.nonfinite > 0, "number");
    if (column.name !== "layer") return false;
    let button = cell.firstElementChild;
    if (!button) {
      button = element("button", { class: "layer", onclick: () => this.choose(row.index) });
      cell.append(button, element("span", { class: "marks" }));
    }
    say(button, row.name);
    button.setAttribute("aria-pressed", String(this.chosen === row.index));
    const findings = this.findings.get(row.name) ?? [];
    say(cell.lastChild, findings.map((finding) => ` ${finding.rule}`).join(""));
    const worst = ["critical", "warning", "info"].find((severity) => findings.some((finding) => finding.severity === severity));
    mark(cell.lastChild, `marks ${worst ?? ""}`);
    return true;
  }

  async choose(index) {
    this.chosen = this.chosen === index ? null : index;
    this.show();
    if (this.chosen === null) this.clear();
    else await this.draw();
  }

  async draw() {
    const chosen = this.chosen;
    const response = await fetch(`api/histogram?${this.query}&layer=${chosen}`);
    if (!response.ok) return;
    const { name, families } = await response.json();
    if (this.closed || chosen !== this.chosen) return;
    const known = Object.entries(families);
    if (!known.length) {
      this.clear();
      const why = "they are taken seldom, or switched off (hooks.histograms)";
      this.histogram.append(element("p", { class: "empty" }, `No histogram of ${name} was recorded: ${why}.`));
      return;
    }
    const key = `${name} ${known.map(([family]) => family).join(" ")}`;
    if (this.drawn !== key) {
      this.clear();
      this.drawn = key;
      this.curve = new Curve(this.histogram, {
        title: name,
        stepped: true,
        series: known.map(([family], index) => ({ name: family, colour: ["line", "peak"][index], fill: true })),
        range: (_, high) => [0, high || 1],
        format: percent,
        xName: (exponent) => `magnitude 2^${exponent} to 2^${exponent + 1}`,
      });
    }
    this.curve.set(shares(known), known.map(([family, { step }]) => `${family} at step ${whole(step)}`).join(", "), {
      note: "share of the entries by magnitude, powers of two; the first bar has the zeros too",
    });
  }

  clear() {
    this.curve?.close();
    this.curve = this.drawn = null;
    this.histogram.replaceChildren();
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
    this.clear();
  }
}

/** [exponents, shares ...]: only as wide as the histograms are filled. */
function shares(families) {
  const { first_exponent: first } = families[0][1];
  const filled = families.flatMap(([, { counts }]) => counts.flatMap((count, index) => (count > 0 && index > 0 ? [index] : [])));
  const from = Math.max(0, Math.min(63, ...filled) - 2);
  const until = Math.min(63, Math.max(1, ...filled) + 2);
  const exponents = Array.from({ length: until - from + 1 }, (_, index) => first + from + index);
  const columns = families.map(([, { counts }]) => {
    const total = counts.reduce((sum, count) => sum + count, 0) || 1;
    const column = counts.slice(from, until + 1).map((count) => count / total);
    if (from > 0) column[0] += counts[0] / total; // zeros, and what is smaller than any bucket
    return column;
  });
  return [exponents, ...columns];
}
