// The GPUs as cards: utilization and memory as curves with their peaks, power against its limit, temperature, clocks, throttling.

import { Curve } from "./curve.js";
import { element, Keyed, mark, say } from "./element.js";
import { bytes, percent } from "./quantities.js";

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
    mark(this.cards, gpus.length === 1 ? "gpus one" : "gpus");
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
    this.heat = element("span");
    this.clocks = element("span");
    this.activity = element("span");
    this.faults = element("span", { class: "bad" });
    this.facts.append(element("span", { class: "power" }, this.power, this.meter), this.heat, this.clocks, this.activity, this.faults);
    this.plots = element("div", { class: "plots" });
    const whole = () => [0, 1];
    const small = { height: 64, axes: false, time: true };
    this.utilization = new Curve(this.plots, {
      ...small, title: "utilization", range: whole, format: percent, series: [{ name: "utilization", colour: "utilization", fill: true }],
    });
    this.memory = new Curve(this.plots, {
      ...small,
      title: "memory",
      range: () => [0, this.memorySize ?? 1],
      format: bytes,
      series: [{ name: "used", colour: "memory", fill: true }, { name: "peak", colour: "peak" }],
    });
    this.root = element("article", { class: "gpu" }, element("h3", {}, this.label, " ", this.name, " ", this.state), this.facts, this.plots);
  }

  update(gpu) {
    const { values } = gpu;
    say(this.label, gpu.gpu);
    say(this.name, gpu.name.replace(/^NVIDIA /, "") + (gpu.mig_profile ? ` ${gpu.mig_profile}` : ""));
    this.facts.hidden = this.plots.hidden = !gpu.up;
    const throttled = Object.entries(values.throttle_active ?? {}).filter(([, active]) => active);
    const reasons = throttled.map(([reason]) => reason.replaceAll("_", " ")).join(", ");
    const age = gpu.age_seconds === null ? "" : `, last seen ${Math.round(gpu.age_seconds)} s ago`;
    say(this.state, gpu.up ? (reasons ? `throttled: ${reasons}` : "") : `down: ${gpu.reason}${age}`);
    mark(this.state, gpu.up ? "state warning" : "state critical");
    if (gpu.up) {
      this.tellFacts(values);
      this.draw(gpu);
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
    const used = `${bytes(values.memory_used_bytes)}${this.memorySize ? ` of ${bytes(this.memorySize)}` : ""}`;
    this.memory.set(this.history.curves(uuid, "memory_used_bytes", "memory_peak_bytes"), used, {
      level: fullest,
      note: fullest === null ? "" : `peak ${bytes(fullest)}`,
    });
  }

  close() {
    this.utilization.close();
    this.memory.close();
  }
}
