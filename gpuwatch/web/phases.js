// Where a step's time goes, as one bar: data, forward, backward, optimizer, other.

import { element, say } from "./element.js";
import { percent } from "./quantities.js";

const PHASES = ["data", "forward", "backward", "optimizer", "other"];

export class PhaseBar {
  constructor() {
    this.bar = element("span", { class: "phases", role: "img" });
    this.legend = element("span", { class: "legend" });
    this.root = element("div", { class: "phasebar" }, this.bar, this.legend);
    this.parts = PHASES.map((phase) => {
      const share = element("i", { class: phase });
      const told = element("span", {}, element("i", { class: phase }), ` ${phase} `, element("b"));
      this.bar.append(share);
      this.legend.append(told);
      return { phase, share, told };
    });
  }

  update(phaseSeconds) {
    const total = Object.values(phaseSeconds).reduce((sum, seconds) => sum + seconds, 0);
    this.root.hidden = !(total > 0);
    for (const { phase, share, told } of this.parts) {
      const ratio = total > 0 ? (phaseSeconds[phase] ?? 0) / total : 0;
      share.style.flexGrow = ratio;
      share.title = `${phase} ${percent(ratio)}`;
      told.hidden = ratio < 0.005;
      say(told.lastChild, percent(ratio));
    }
    this.bar.setAttribute("aria-label", this.parts.map(({ phase, told }) => `${phase} ${told.lastChild.textContent}`).join(", "));
  }
}
