// The processes that the driver lists, and training processes on no GPU: sorted, filtered.

import { element, say } from "./element.js";
import { runLink } from "./jobs.js";
import { bytes, percent } from "./quantities.js";
import { SortableTable } from "./sortable.js";

const given = (value) => value ?? null;
const words = (value) => value || null;

const COLUMNS = [
  { name: "GPU", value: (row) => words(row.gpu), text: (row) => row.gpu, ascending: true, always: true },
  { name: "PID", value: (row) => row.pid, text: (row) => String(row.pid), numeric: true, ascending: true, always: true },
  { name: "user", value: (row) => words(row.user), text: (row) => row.user, ascending: true },
  { name: "SM", value: (row) => given(row.sm_utilization_ratio), text: (row) => told(percent, row.sm_utilization_ratio), numeric: true },
  { name: "memory", value: (row) => given(row.memory_bytes), text: (row) => told(bytes, row.memory_bytes), numeric: true, always: true },
  { name: "peak", value: (row) => given(row.memory_peak_bytes), text: (row) => told(bytes, row.memory_peak_bytes), numeric: true },
  { name: "CPU", value: (row) => given(row.cpu_ratio), text: (row) => told(percent, row.cpu_ratio), numeric: true },
  { name: "RAM", value: (row) => given(row.resident_bytes), text: (row) => told(bytes, row.resident_bytes), numeric: true },
  { name: "training", value: (row) => words(row.job), text: (row) => row.job, ascending: true },
  { name: "container", value: (row) => words(row.container), text: (row) => row.container, ascending: true },
  { name: "SLURM", value: (row) => words(row.slurm_job_id), text: (row) => row.slurm_job_id, ascending: true },
  { name: "command", value: (row) => words(row.command), text: (row) => row.command, ascending: true, always: true },
];

const told = (format, value) => (value === null || value === undefined ? "" : format(value));

export class Processes {
  constructor() {
    const filter = { type: "search", placeholder: "words; gpu:0 for one GPU", "aria-label": "filter the processes" };
    this.filter = element("input", { ...filter, oninput: () => this.show() });
    this.none = element("p", { class: "empty" });
    this.table = new SortableTable(COLUMNS, (row) => `${row.gpu}/${row.pid}/${row.start_ticks}`, { sortBy: 4, decorate, label: "processes" });
    this.root = element("section", { "aria-label": "Processes" }, element("h2", {}, "Processes"), this.filter, this.none, this.table.root);
    this.rows = [];
    this.processors = new Map(); // pid -> {cpuSeconds, at, ratio}
  }

  update(snapshot) {
    this.follow(snapshot.host);
    this.rows = rows(snapshot, this.processors);
    this.show();
  }

  show() {
    const wanted = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const has = (row, word) =>
      word.startsWith("gpu:")
        ? row.gpu === word.slice(4)
        : [row.pid, row.user, row.job, row.container, row.slurm_job_id, row.command].some((text) => String(text).toLowerCase().includes(word));
    const shown = this.rows.filter((row) => wanted.every((word) => has(row, word)));
    this.filter.hidden = this.rows.length === 0;
    this.table.root.hidden = shown.length === 0;
    say(this.none, shown.length ? "" : this.rows.length ? "No process matches." : "No process on a GPU, and none that trains.");
    this.table.show(shown);
  }

  // Processors kept busy, from one of the host's samples to the next.
  follow(host) {
    if (!host) return;
    const at = host.monotonic_ns / 1e9;
    const next = new Map();
    for (const [pid, { cpu_seconds: cpuSeconds }] of Object.entries(host.processes)) {
      const known = this.processors.get(Number(pid));
      if (known && at <= known.at) next.set(Number(pid), known);
      else next.set(Number(pid), { cpuSeconds, at, ratio: known ? Math.max(0, cpuSeconds - known.cpuSeconds) / (at - known.at) : null });
    }
    this.processors = next;
  }
}

function rows({ gpus, runs, host }, processors) {
  const live = new Map(runs.filter((run) => run.status === "live").map((run) => [run.pid, run]));
  const listed = new Set();
  const about = (pid) => {
    const run = live.get(pid);
    return {
      job: run ? (run.world_size > 1 ? `${run.run}:${run.rank}` : run.run) : "",
      directory: run?.directory,
      cpu_ratio: processors.get(pid)?.ratio,
      resident_bytes: host?.processes[pid]?.resident_bytes,
    };
  };
  const found = gpus.flatMap((gpu) =>
    gpu.processes.map((process) => {
      listed.add(process.pid);
      return { ...process, gpu: gpu.gpu, ...about(process.pid) };
    }),
  );
  for (const run of live.values()) {
    if (listed.has(run.pid)) continue;
    const nothing = { user: "", container: "", slurm_job_id: "", start_ticks: 0 };
    found.push({ ...nothing, gpu: "", pid: run.pid, command: run.program, ...about(run.pid) });
  }
  return found;
}

function decorate(cell, column, row) {
  if (column.name !== "training" || !row.directory) return false;
  let link = cell.firstElementChild;
  if (!link) cell.replaceChildren((link = element("a")));
  say(link, row.job);
  link.href = runLink(row.directory);
  return true;
}
