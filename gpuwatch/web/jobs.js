// The training jobs: a card each, its ranks taken together, and the runs that have ended as a table under them.

import { element, Keyed, mark, say } from "./element.js";
import { Findings, merged } from "./findings.js";
import { PhaseBar } from "./phases.js";
import { bytes, clock, many, number, numeric, percent, whole } from "./quantities.js";

//: The status of a run is the worst of its ranks'.
const WORST = ["failed", "lost", "live", "finished"];

/** Runs as lists of their ranks, newest attempts: [{name, ranks, status, live}], live ones first, then the newest. */
export function grouped(runs) {
  const named = new Map();
  const ordered = [...runs].sort((one, other) => one.attempt - other.attempt || one.started - other.started);
  for (const run of ordered) {
    if (!named.has(run.run)) named.set(run.run, new Map());
    named.get(run.run).set(run.rank, run);
  }
  const jobs = [...named].map(([name, ranks]) => {
    const sorted = [...ranks.values()].sort((one, other) => one.rank - other.rank);
    const status = WORST.find((word) => sorted.some((rank) => rank.status === word));
    return { name, ranks: sorted, status, live: sorted.some((rank) => rank.status === "live") };
  });
  return jobs.sort((one, other) => other.live - one.live || other.ranks[0].started - one.ranks[0].started);
}

/** Labels of the GPUs on which the driver lists these processes. */
export function gpusOf(ranks, gpus) {
  const pids = new Set(ranks.filter((rank) => rank.status === "live").map((rank) => rank.pid));
  return gpus.filter((gpu) => gpu.processes.some((process) => pids.has(process.pid))).map((gpu) => gpu.gpu);
}

export const runLink = (directory) => `#/run/${directory.split("/").map(encodeURIComponent).join("/")}`;

export class Jobs {
  constructor() {
    this.none = element("p", { class: "empty" }, "No training job. Start one with ", element("code", {}, "gpuwatch run -- python train.py"));
    this.cards = element("div", { class: "jobs" });
    this.ended = element("tbody");
    const columns = ["run", "status", "step", "loss", "findings", "started"].map((name) => element("th", { scope: "col" }, name));
    this.past = element(
      "details",
      { class: "past" },
      element("summary", {}, "Runs that have ended"),
      element("div", { class: "scroll" }, element("table", {}, element("thead", {}, element("tr", {}, ...columns)), this.ended)),
    );
    this.root = element("section", { "aria-label": "Training jobs" }, element("h2", {}, "Training"), this.none, this.cards, this.past);
    this.list = new Keyed(this.cards, (job) => job.name, (job) => new Card(job.name));
    this.pastList = new Keyed(this.ended, (job) => job.name, endedRow);
  }

  update({ runs, gpus }) {
    const jobs = grouped(runs);
    const live = jobs.filter((job) => job.live);
    const ended = jobs.filter((job) => !job.live);
    this.none.hidden = live.length > 0;
    this.list.update(live.map((job) => ({ ...job, gpus: gpusOf(job.ranks, gpus) })));
    this.past.hidden = ended.length === 0;
    if (!live.length && ended.length && !this.opened) this.opened = this.past.open = true;
    this.pastList.update(ended);
  }
}

/** What is said of a job in one row of facts: [name, value, class] of its lowest rank. */
export function facts(job) {
  const [first] = job.ranks;
  const { values } = first;
  const alarming = (value) => (value !== null && !Number.isFinite(value) ? "bad" : "");
  const loss = numeric(values.loss);
  const norm = numeric(values.grad_norm);
  const seconds = first.phase_seconds;
  const total = Object.values(seconds).reduce((sum, part) => sum + part, 0);
  const lost = job.ranks.reduce((sum, rank) => sum + rank.lost_records, 0);
  return [
    ["step", whole(first.step)],
    ["steps/s", first.status === "live" ? number(first.steps_per_second) : null],
    ["loss", number(loss), alarming(loss)],
    ["gradient norm", number(norm), alarming(norm)],
    ["loss scale", values.loss_scale === undefined ? null : number(values.loss_scale)],
    ["skipped steps", first.skipped_steps ? whole(first.skipped_steps) : null, "bad"],
    ["learning rate", first.learning_rate === null ? null : number(first.learning_rate)],
    ["waits for data", total > 0 ? percent((seconds.data ?? 0) / total) : null],
    ["torch memory", values.torch_allocated_bytes === undefined ? null : bytes(numeric(values.torch_allocated_bytes))],
    ["hooks take", values.overhead_ratio === undefined ? null : `${number(100 * numeric(values.overhead_ratio))} %`],
    ["records lost", lost ? whole(lost) : null, "bad"],
  ].filter(([, value]) => value !== null);
}

/** A list of facts, each a name over a value. */
export class Facts {
  constructor() {
    this.root = element("dl", { class: "numbers" });
    this.list = new Keyed(this.root, ([name]) => name, ([name]) => {
      const value = element("dd");
      return {
        root: element("div", {}, element("dt", {}, name), value),
        update([, told, style]) {
          say(value, told);
          mark(value, style ?? "");
        },
      };
    });
  }

  update(items) {
    this.list.update(items);
  }
}

class Card {
  constructor(name) {
    this.link = element("a", {}, name);
    this.about = element("span", { class: "about" });
    this.status = element("span");
    this.facts = new Facts();
    this.phases = new PhaseBar();
    this.findings = new Findings();
    this.past = element("p", { class: "about" });
    const head = element("h3", {}, this.link, " ", this.status, " ", this.about);
    this.root = element("article", { class: "job" }, head, this.facts.root, this.phases.root, this.findings.root, this.past);
  }

  update(job) {
    const [first] = job.ranks;
    this.link.href = runLink(first.directory);
    say(this.status, job.status);
    mark(this.status, `status ${job.status}`);
    const gpus = job.gpus.length ? `GPU ${job.gpus.join(", ")}` : "";
    const ranks = first.world_size > 1 ? many(first.world_size, "rank") : "";
    say(this.about, [first.program, gpus, ranks, first.precision].filter(Boolean).join(" · "));
    this.facts.update(facts(job));
    this.phases.update(first.phase_seconds);
    this.findings.update(merged(job.ranks.flatMap((rank) => rank.findings)));
    const past = counted(job.ranks.flatMap(closed));
    this.past.hidden = past.length === 0;
    say(this.past, `Found before, and over: ${past.join(", ")}`);
  }
}

/** [rule, times] of the findings of a rank that are closed. */
function closed({ finding_counts: counts, findings }) {
  const open = (rule) => findings.filter((finding) => finding.rule === rule).length;
  return Object.entries(counts).map(([rule, times]) => [rule, times - open(rule)]);
}

/** "rule" or "rule ×3" of each that was found at all; the same rule of several ranks is one. */
function counted(pairs) {
  const sums = new Map();
  for (const [rule, times] of pairs) sums.set(rule, (sums.get(rule) ?? 0) + times);
  return [...sums].filter(([, times]) => times > 0).map(([rule, times]) => (times > 1 ? `${rule} ×${times}` : rule));
}

function endedRow(job) {
  const cells = ["", "", "number", "number", "", ""].map((style) => element("td", { class: style || null }));
  const link = element("a", { href: runLink(job.ranks[0].directory) }, job.name);
  cells[0].append(link);
  return {
    root: element("tr", {}, ...cells),
    update({ ranks, status }) {
      const [first] = ranks;
      const counts = counted(Object.entries(first.finding_counts)).join(", ") || "none";
      const told = [status, whole(first.step), number(first.values.loss ?? null), counts, clock(first.started)];
      told.forEach((text, index) => say(cells[index + 1], text));
      mark(cells[1], `status ${status}`);
    },
  };
}
