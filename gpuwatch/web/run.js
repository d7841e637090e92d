// The page of one process of a run: curves over its last steps, findings on their time line, layers.

import { Curve } from "./curve.js";
import { element, mark, say } from "./element.js";
import { Findings, merged } from "./findings.js";
import { Facts, facts, grouped, gpusOf, runLink } from "./jobs.js";
import { Layers } from "./layers.js";
import { PhaseBar } from "./phases.js";
import { bytes, clock, duration, number, whole } from "./quantities.js";
import { Timeline } from "./timeline.js";

const CURVES = [
  { title: "loss", names: { loss: "loss" }, mayBeLog: true },
  { title: "gradient norm", names: { grad_norm: "norm", grad_norm_clipped: "after clipping" }, mayBeLog: true },
  { title: "learning rate", names: { learning_rate: "learning rate" }, range: (low, high) => [Math.min(0, low), high > 0 ? 1.1 * high : 1] },
  { title: "step time", names: { step_seconds: "step time" }, format: duration, range: (_, high) => [0, 1.1 * high || 1] },
  { title: "loss scale", names: { loss_scale: "loss scale" }, mayBeLog: true },
  { title: "update ratio", names: { update_ratio: "update ratio" }, mayBeLog: true },
  { title: "weight norm", names: { weight_norm: "weight norm" } },
  { title: "torch memory", names: { torch_allocated_bytes: "allocated" }, format: bytes, range: (_, high) => [0, 1.1 * high || 1] },
];
const INKS = ["line", "peak"];
const NOT_HERE =
  "This daemon holds no such run: it has ended long ago, or another daemon recorded it. " +
  "gpuwatch status and TensorBoard read what it left.";

export class RunPage {
  constructor(_, directory) {
    this.directory = directory;
    this.query = `run=${directory.split("/").map(encodeURIComponent).join("/")}`;
    this.title = `${directory} · gpuwatch`;
    this.status = element("span");
    this.about = element("span", { class: "about" });
    this.ranks = element("nav", { class: "ranks", "aria-label": "ranks" });
    this.facts = new Facts();
    this.phases = new PhaseBar();
    this.findings = new Findings();
    this.notice = element("p", { class: "empty" });
    this.window = element("p", { class: "about" });
    this.grid = element("div", { class: "curves" });
    this.timeline = new Timeline();
    this.layers = new Layers(this.query);
    this.details = element("dl", { class: "details" });
    this.curves = new Map();
    this.points = new Map(); // name -> {steps, values}
    this.step = 0;
    this.read = null; // step of the last answer; null: none yet
    this.root = element(
      "div",
      { class: "run" },
      element("h1", {}, directory, " ", this.status, " ", this.about),
      this.ranks, this.notice, this.facts.root, this.phases.root,
      element("section", { "aria-label": "Findings" }, this.findings.root),
      element("section", { "aria-label": "Curves" }, element("h2", {}, "Curves"), this.window, this.grid, this.timeline.root),
      this.layers.root,
      element("section", { "aria-label": "About this run" }, element("h2", {}, "About this run"), this.details),
    );
  }

  /** isFirst: a new connection, perhaps to another daemon, whose window begins elsewhere. */
  update(snapshot, isFirst) {
    if (isFirst) {
      this.read = null;
      this.points = new Map();
    }
    const run = snapshot.runs.find((known) => known.directory === this.directory);
    say(this.notice, run ? "" : NOT_HERE);
    this.notice.hidden = Boolean(run);
    if (!run) return;
    const job = grouped(snapshot.runs).find((known) => known.name === run.run);
    say(this.status, run.status);
    mark(this.status, `status ${run.status}`);
    const gpus = gpusOf([run], snapshot.gpus);
    say(this.about, [run.program, gpus.length ? `GPU ${gpus.join(", ")}` : "", run.precision].filter(Boolean).join(" · "));
    this.showRanks(job?.ranks ?? []);
    this.facts.update(facts({ ranks: [run] }));
    this.phases.update(run.phase_seconds);
    const signs = `${run.step} ${run.status} ${JSON.stringify(run.finding_counts)} ${run.findings.length}`;
    if (!this.asking && (signs !== this.signs || this.read === null)) {
      this.signs = signs; // what changes while an answer is under way is asked for with the next snapshot
      this.ask();
      this.layers.follow(run.step);
    }
  }

  showRanks(ranks) {
    const directories = ranks.map((rank) => rank.directory).join(" ");
    if (directories === this.known || ranks.length < 2) return;
    this.known = directories;
    const link = ({ directory, rank }) => {
      const current = directory === this.directory ? "page" : null;
      return element("a", { href: runLink(directory), "aria-current": current }, `rank ${rank}`);
    };
    this.ranks.replaceChildren(...ranks.map(link));
  }

  async ask() {
    this.asking = true;
    const after = this.read ?? 0;
    try {
      const response = await fetch(`api/run?${this.query}&after=${after}`);
      const answer = response.ok ? await response.json() : null;
      if (answer && !this.closed && after === (this.read ?? 0)) this.take(answer);
    } catch {
      // the feed says that the daemon is away
    } finally {
      this.asking = false;
    }
  }

  take(answer) {
    this.read = answer.step;
    for (const [name, { steps, values }] of Object.entries(answer.curves)) {
      const known = this.points.get(name) ?? { steps: [], values: [] };
      const over = Math.max(0, known.steps.length + steps.length - answer.window_steps);
      this.points.set(name, { steps: [...known.steps, ...steps].slice(over), values: [...known.values, ...values].slice(over) });
    }
    this.span = this.spanOf("step_seconds") ?? this.spanOf("loss") ?? this.spanOf("grad_norm");
    const span = this.span;
    const kept = "as far back as this daemon keeps them; all of them are in TensorBoard.";
    say(this.window, span ? `Steps ${whole(span[0])} to ${whole(span[1])}, ${kept}` : "No step yet.");
    const lines = beginnings(answer.findings);
    for (const curve of CURVES) this.draw(curve, lines);
    this.findings.update(merged(answer.findings.filter((finding) => finding.state !== "closed")));
    this.timeline.update(answer.findings, span);
    this.layers.mark(answer.findings);
    this.describe(answer.facts);
  }

  // What every step has reaches less far back than what is measured now and then: all curves show the steps of the former.
  spanOf(name) {
    const steps = this.points.get(name)?.steps ?? [];
    return steps.length ? [steps[0], Math.max(this.read, steps.at(-1))] : null;
  }

  draw({ title, names, format = number, ...options }, lines) {
    const known = Object.keys(names).filter((name) => this.points.get(name)?.steps.length);
    if (!known.length) return;
    const key = `${title} ${known.length}`;
    if (this.curves.get(title)?.key !== key) {
      const before = this.curves.get(title)?.curve;
      const series = known.map((name, index) => ({ name: names[name], colour: INKS[index] }));
      const curve = new Curve(this.grid, { title, series, format, ...options });
      before?.root.replaceWith(curve.root);
      before?.close();
      this.curves.set(title, { key, curve });
    }
    const tables = known.map((name) => {
      const { steps, values } = this.points.get(name);
      return [steps, values];
    });
    const data = tables.length > 1 ? uPlot.join(tables) : tables[0];
    const last = known.map((name) => {
      const value = this.points.get(name).values.at(-1);
      return value === null ? "NaN" : format(value);
    });
    const [steps, values] = tables[0];
    const nonfinite = steps.filter((_, index) => values[index] === null);
    const note = nonfinite.length ? `${whole(nonfinite.length)} not finite` : "";
    this.curves.get(title).curve.set(data, last.join(", "), { lines, nonfinite, note, span: this.span });
  }

  describe({ told, started, log, parameters, layers, ...plain }) {
    const rows = { ...plain, parameters: whole(parameters), layers: whole(layers), started: clock(started), "recorded to": log, ...told };
    const items = Object.entries(rows).filter(([, value]) => value !== "");
    const text = JSON.stringify(items);
    if (text === this.described) return;
    this.described = text;
    const fact = ([name, value]) =>
      element("div", {}, element("dt", {}, name.replaceAll("_", " ")), element("dd", {}, String(value)));
    this.details.replaceChildren(...items.map(fact));
  }

  close() {
    this.closed = true;
    for (const { curve } of this.curves.values()) curve.close();
    this.layers.close();
  }
}

/** Where each rule began to speak first, and where what is open began: a line for every episode would hide the curves. */
function beginnings(findings) {
  const first = new Map();
  for (const finding of findings) if (!first.has(finding.rule)) first.set(finding.rule, finding);
  const told = new Set([...first.values(), ...findings.filter((finding) => finding.state !== "closed")]);
  return [...told].map(({ first_step: at, severity }) => ({ at, severity }));
}
