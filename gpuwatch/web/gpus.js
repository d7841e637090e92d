// The GPUs as cards: utilization and memory as curves with their peaks, power against its limit, temperature, clocks, throttling.

import { Curve } from "./curve.js";
import { element, Keyed, mark, say } from "./element.js";
import { bytes, bytesOf, percent } from "./quantities.js";

const WHY = {
  starting: "No GPU has answered yet.",
  sampling: "The driver lists no GPU.",
  paused: "Sampling of GPUs is paused; gpuwatch resume goes on.",
  off: "This daemon does not sample GPUs (sampling.gpus is false).",
};

export class Gpus {
  constructor(history) {
    this.history = history;
    this.cards = element("div", { class: "gpus" });
    this.none = element("p", { class: "empty" });
    this.root = element("section", { "aria-label": "GPUs" }, this.none, this.cards);
    this.list = new Keyed(this.cards, (gpu) => gpu.uuid, () => new Card(history));
  }

  update({ gpus, state, message }) {
    this.none.hidden = gpus.length > 0;
    say(this.none, gpus.length ? "" : `No GPU here: ${message || WHY[state] || state}`);
    mark(this.cards, gpus.length === 1 ? "gpus one" : gpus.length % 4 === 0 ? "gpus fours" : "gpus");
    this.list.update(gpus);
  }

  close() {
    this.list.close();
  }
}

class Card {
  constructor(history) {
    this.history = history;
    this.label = element("b");
    this.name = element("span", { class: "name" });
    this.state = element("span", { class: "state" });
    this.facts = element("p", { class: "facts" });
    this.meter = element("meter", { min: 0, max: 1, "aria-label": "power, of its limit" });
    this.power = element("span");
    this.throttled = element("span", { class: "throttled" });
    this.heat = element("span");
    this.clocks = element("span");
    this.activity = element("span");
    this.faults = element("span", { class: "bad" });
    this.facts.append(element("span", { class: "power" }, this.power, this.meter), this.heat, this.throttled, this.clocks, this.activity, this.faults);
    this.plots = element("div", { class: "plots" });
    const whole = () => [0, 1];
    const small = { height: 64, axes: false, time: true };
    this.utilization = new Curve(this.plots, {
      ...small,
      title: "utilization",
      range: whole,
      format: percent,
      series: [{ name: "utilization", colour: "utilization", fill: true }],
    });
    this.memory = new Curve(this.plots, {
      ...small,
      title: "memory",
      range: () => [0, this.memorySize ?? 1],
      format: bytes,
      series: [{ name: "used", colour: "memory", fill: true }, { name: "peak", colour: "peak" }],
    });
    // A GPU that is alone has the whole width: there is room for these two.
    this.roomy = element("div", { class: "plots roomy" });
    this.watts = new Curve(this.roomy, {
      ...small,
      title: "power",
      range: (_, most) => [0, Math.max(this.limit ?? 0, most ?? 1)],
      format: (value) => `${Math.round(value)} W`,
      series: [{ name: "power", colour: "line", fill: true }],
    });
    this.degrees = new Curve(this.roomy, {
      ...small,
      title: "temperature",
      range: (_, most) => [0, Math.max(100, most ?? 0)],
      format: (value) => `${Math.round(value)} °C`,
      series: [{ name: "chip", colour: "warning", fill: true }],
    });
    const head = element("h3", {}, this.label, " ", this.name, " ", this.state);
    this.root = element("article", { class: "gpu" }, head, this.facts, this.plots, this.roomy);
  }

  update(gpu) {
    const { values } = gpu;
    say(this.label, gpu.gpu);
    say(this.name, gpu.name.replace(/^NVIDIA /, "") + (gpu.mig_profile ? ` ${gpu.mig_profile}` : ""));
    this.facts.hidden = this.plots.hidden = this.roomy.hidden = !gpu.up;
    const age = gpu.age_seconds === null ? "" : `, last seen ${Math.round(gpu.age_seconds)} s ago`;
    say(this.state, gpu.up ? "" : `down: ${gpu.reason}${age}`);
    if (gpu.up) {
      this.tellFacts(values);
      this.draw(gpu);
      this.drawRoomy(gpu);
    }
  }

  tellFacts(values) {
    const { power_watts: watts, power_limit_watts: limit } = values;
    this.meter.hidden = watts === undefined || !limit;
    say(this.power, watts === undefined ? "" : `${Math.round(watts)}${limit ? ` of ${Math.round(limit)}` : ""} W`);
    if (limit && watts !== undefined) {
      this.meter.value = Math.min(1, watts / limit);
      mark(this.meter, watts >= 0.98 * limit ? "full" : "");
    }
    const throttled = Object.entries(values.throttle_active ?? {}).filter(([, active]) => active);
    say(this.throttled, throttled.length ? `throttled: ${throttled.map(([reason]) => reason.replaceAll("_", " ")).join(", ")}` : "");
    const { core, memory } = values.temperature_celsius ?? {};
    const slowdown = values.temperature_threshold_celsius?.slowdown;
    say(this.heat, core === undefined ? "" : `${Math.round(core)}${memory ? `/${Math.round(memory)}` : ""} °C`);
    mark(this.heat, slowdown !== undefined && core >= slowdown - 5 ? "bad" : "");
    const clocks = [["sm", "SM"], ["memory", "memory"]].filter(([domain]) => values.clock_hertz?.[domain] !== undefined);
    const megahertz = (hertz) => Math.round(hertz / 1e6);
    const told = clocks.map(([domain, name]) => {
      const most = values.clock_max_hertz?.[domain];
      return `${name} ${megahertz(values.clock_hertz[domain])}${most ? `/${megahertz(most)}` : ""}`;
    });
    say(this.clocks, told.length ? `${told.join(", ")} MHz` : "");
    const active = [["sm", "SM"], ["tensor", "tensor cores"], ["dram", "DRAM"]].filter(([name]) => `${name}_active_ratio` in values);
    say(this.activity, active.map(([name, words]) => `${words} ${percent(values[`${name}_active_ratio`])}`).join(", "));
    const xids = Object.entries(values.xid_errors_total ?? {}).filter(([, times]) => times > 0).map(([xid]) => `Xid ${xid}`);
    const ecc = values.ecc_uncorrected_total ? [`${values.ecc_uncorrected_total} uncorrected ECC errors`] : [];
    const remap = values.row_remap_failure ? ["row remapping failed"] : values.row_remap_pending ? ["row remap pending"] : [];
    say(this.faults, [...xids, ...ecc, ...remap].join(", "));
  }

  draw({ uuid, values }) {
    const busiest = values.utilization_peak_ratio?.["300s"] ?? null;
    this.utilization.set(this.history.curves(uuid, "utilization_ratio"), percent(values.utilization_ratio), {
      level: busiest,
      note: busiest === null ? "" : `peak ${percent(busiest)}`,
    });
    this.memorySize = values.memory_size_bytes;
    const fullest = values.memory_used_peak_bytes?.["300s"] ?? null;
    const used = bytesOf(values.memory_used_bytes, this.memorySize);
    this.memory.set(this.history.curves(uuid, "memory_used_bytes", "memory_peak_bytes"), used, {
      level: fullest,
      note: fullest === null ? "" : `peak ${bytes(fullest)}`,
    });
  }

  drawRoomy({ uuid, values }) {
    if (!this.roomy.clientWidth) return;
    const { power_watts: watts, power_limit_watts: limit } = values;
    this.limit = limit;
    const told = watts === undefined ? "" : `${Math.round(watts)} W`;
    this.watts.set(this.history.curves(uuid, "power_watts"), told, { note: limit ? `limit ${Math.round(limit)} W` : "" });
    const slowdown = values.temperature_threshold_celsius?.slowdown;
    const core = values.temperature_celsius?.core;
    this.degrees.set(this.history.curves(uuid, "temperature_celsius"), core === undefined ? "" : `${Math.round(core)} °C`, {
      note: slowdown === undefined ? "" : `slows down at ${Math.round(slowdown)} °C`,
    });
  }

  close() {
    for (const curve of [this.utilization, this.memory, this.watts, this.degrees]) curve.close();
  }
}
