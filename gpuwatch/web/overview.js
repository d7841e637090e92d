// The first page: this node's GPUs, the training on it, and who uses the GPUs.

import { element } from "./element.js";
import { Gpus } from "./gpus.js";
import { Jobs } from "./jobs.js";
import { Processes } from "./processes.js";

export class Overview {
  constructor({ history }) {
    this.title = "gpuwatch";
    this.parts = [new Jobs(), new Gpus(history), new Processes()];
    const [jobs, gpus, processes] = this.parts;
    gpus.root.prepend(element("h2", {}, "GPUs"));
    this.root = element("div", { class: "overview" }, jobs.root, gpus.root, processes.root);
    this.root.hidden = true; // until the daemon has spoken, nobody knows that there is "no training job"
  }

  update(snapshot) {
    this.root.hidden = false;
    for (const part of this.parts) part.update(snapshot);
  }

  close() {
    for (const part of this.parts) part.close?.();
  }
}
