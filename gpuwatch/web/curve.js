// One plot: uPlot with the page's colours, its size and its scheme followed, a caption that says the value under the pointer.

import { element, say } from "./element.js";
import { clock, number } from "./quantities.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
//: A series that spans more than this is drawn on a logarithmic scale: on a linear one an explosion hides all before it.
const LOG_FROM_RATIO = 300;

/**
 * options: title; series [{name, colour, fill}]; height; axes (false for a small plot); time (the x axis is wall time, else steps);
 * format (of values); range(min, max) -> [min, max]; mayBeLog; stepped; xName(x), when x is neither.
 */
export class Curve {
  constructor(parent, options) {
    this.options = { height: 150, axes: true, time: false, stepped: false, format: number, mayBeLog: false, ...options };
    this.now = element("span", { class: "now" });
    this.note = element("span", { class: "note" });
    this.plot = element("div", { class: "plot", role: "img" });
    const { series, axes } = this.options;
    const key = ({ name, colour: ink }) => element("span", { class: "key" }, element("i", { class: `ink-${ink}` }), ` ${name}`);
    const keys = axes && series.length > 1 ? series.map(key) : [];
    const caption = element("figcaption", {}, element("b", {}, options.title), " ", this.now, ...keys, this.note);
    this.root = element("figure", {}, caption, this.plot);
    parent.append(this.root);
    this.data = null;
    this.marks = {};
    this.log = false;
    this.sizes = new ResizeObserver(() => this.resize());
    this.sizes.observe(this.plot);
    this.repaint = () => this.build();
    dark.addEventListener("change", this.repaint);
  }

  /** data: [x, y, ...] as uPlot has them; told: the caption's value; marks: {level, lines: [{at, severity}], nonfinite: [x], note, span: [from, to] of x}. */
  set(data, told, marks = {}) {
    this.data = data;
    this.told = told;
    this.marks = marks;
    const log = this.options.mayBeLog && spread(data.slice(1)) > LOG_FROM_RATIO;
    if (!this.uplot || log !== this.log) {
      this.log = log;
      this.build();
    } else {
      this.uplot.setData(data);
    }
    if (this.uplot?.cursor.idx == null) say(this.now, told);
    say(this.note, [marks.note, log ? "logarithmic" : ""].filter(Boolean).join(", "));
    this.plot.setAttribute("aria-label", `${this.options.title}: ${told} ${marks.note ?? ""}`);
  }

  build() {
    this.uplot?.destroy();
    this.uplot = null;
    const width = this.plot.clientWidth;
    if (!width || !this.data) return;
    const { series, height, axes, time, format, range, stepped } = this.options;
    const grid = { stroke: colour("grid"), width: 1 };
    const line = { stroke: colour("muted"), grid, ticks: { show: false }, font: "11px system-ui" };
    const steps = (_, values) => values.map((value) => (Number.isInteger(value) ? value.toLocaleString("en") : ""));
    this.uplot = new uPlot(
      {
        width,
        height,
        padding: axes ? [8, 8, 0, 0] : [2, 0, 2, 0],
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false }, points: { size: 5 } },
        scales: {
          x: { time, range: (_, least, most) => widened(...(this.marks.span ?? [least, most])) },
          y: { distr: this.log ? 3 : 1, log: 10, range: !this.log && range ? (_, low, high) => range(low, high) : undefined },
        },
        axes: [
          { ...line, show: axes, size: 24, ...(time ? {} : { values: steps }) },
          {
            ...line,
            grid: { ...grid, filter: (_, splits) => this.labelled(splits) },
            show: axes,
            size: 56,
            values: (_, splits) => this.labelled(splits).map((value) => (value === null ? "" : value === 0 ? "0" : format(value))),
          },
        ],
        series: [
          {},
          ...series.map(({ name, colour: ink, fill }) => ({
            label: name,
            stroke: colour(ink),
            width: 1.5,
            fill: fill && !this.log ? `${colour(ink)}30` : undefined,
            paths: stepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
            points: { show: this.data[0].length < 3 },
          })),
        ],
        hooks: { draw: [(drawn) => this.drawMarks(drawn)], setCursor: [(drawn) => this.tellCursor(drawn)] },
      },
      this.data,
      this.plot,
    );
  }

  // Of a logarithmic axis' lines only whole powers of ten, and of those at most six.
  labelled(splits) {
    if (!this.log) return splits;
    const powers = splits.map((value) => Math.round(Math.log10(value)));
    const whole = powers.filter((power, index) => Math.abs(splits[index] / 10 ** power - 1) < 1e-6);
    const every = Math.max(1, Math.ceil(whole.length / 6));
    const kept = (power, index) => Math.abs(splits[index] / 10 ** power - 1) < 1e-6 && power % every === 0;
    return whole.length < 2 ? splits : splits.map((value, index) => (kept(powers[index], index) ? value : null));
  }

  resize() {
    if (!this.uplot) this.build();
    else if (this.plot.clientWidth && this.uplot.width !== this.plot.clientWidth) {
      this.uplot.setSize({ width: this.plot.clientWidth, height: this.options.height });
    }
  }

  drawMarks(drawn) {
    const { ctx, bbox } = drawn;
    const stroke = (ink, dash, from, to) => {
      ctx.strokeStyle = colour(ink);
      ctx.lineWidth = devicePixelRatio;
      ctx.setLineDash(dash.map((length) => length * devicePixelRatio));
      ctx.beginPath();
      ctx.moveTo(...from);
      ctx.lineTo(...to);
      ctx.stroke();
    };
    ctx.save();
    for (const { at, severity } of this.marks.lines ?? []) {
      if (at < drawn.scales.x.min || at > drawn.scales.x.max) continue;
      const x = drawn.valToPos(at, "x", true);
      stroke(severity, [2, 3], [x, bbox.top], [x, bbox.top + bbox.height]);
    }
    const { level } = this.marks;
    if (level !== null && level !== undefined && level <= drawn.scales.y.max) {
      const y = Math.max(bbox.top + 1, drawn.valToPos(level, "y", true));
      stroke("peak", [5, 4], [bbox.left, y], [bbox.left + bbox.width, y]);
    }
    // What was measured and is no number leaves a gap in the line; here it is a bar at the foot of the plot.
    ctx.fillStyle = colour("critical");
    const tall = 6 * devicePixelRatio;
    for (const x of this.marks.nonfinite ?? []) {
      ctx.fillRect(drawn.valToPos(x, "x", true) - devicePixelRatio, bbox.top + bbox.height - tall, 2 * devicePixelRatio, tall);
    }
    ctx.restore();
  }

  tellCursor(drawn) {
    const index = drawn.cursor.idx;
    if (index === null || index === undefined) {
      say(this.now, this.told);
      return;
    }
    const x = drawn.data[0][index];
    const at = this.options.time ? clock(x) : (this.options.xName?.(x) ?? `step ${x.toLocaleString("en")}`);
    const values = this.options.series.map(({ name }, which) => {
      const value = drawn.data[which + 1][index];
      const none = this.options.time ? "no value" : "not a number";
      const known = value === null || value === undefined ? none : this.options.format(value);
      return this.options.series.length > 1 ? `${name} ${known}` : known;
    });
    say(this.now, `${values.join(", ")} at ${at}`);
  }

  close() {
    this.sizes.disconnect();
    dark.removeEventListener("change", this.repaint);
    this.uplot?.destroy();
    this.root.remove();
  }
}

/** A range that has a width: a single step stands in the middle. */
const widened = (from, to) => (from === to && from !== null ? [from - 1, to + 1] : [from, to]);

/** Largest over smallest of all values; 0 when one of them is not positive. */
function spread(columns) {
  let least = Infinity;
  let most = 0;
  for (const column of columns) {
    for (const value of column) {
      if (value === null || value === undefined) continue;
      if (value <= 0) return 0;
      least = Math.min(least, value);
      most = Math.max(most, value);
    }
  }
  return most / least;
}
