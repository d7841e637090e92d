// Findings on the axis of steps: a lane for each rule and layer, a bar for each episode.

import { element } from "./element.js";
import { whole } from "./quantities.js";

export class Timeline {
  constructor() {
    this.lanes = element("ol", { class: "timeline" });
    this.root = element("section", { "aria-label": "Time line of findings", hidden: true }, element("h3", {}, "Findings over the steps"), this.lanes);
  }

  /** span: [first, last] step that the curves show; findings before it are pinned to its beginning. */
  update(findings, span) {
    const text = JSON.stringify([findings, span]);
    if (text === this.drawn) return;
    this.drawn = text;
    this.root.hidden = findings.length === 0 || !span;
    if (this.root.hidden) return;
    const [first, last] = span;
    const place = (step) => (100 * Math.min(1, Math.max(0, (step - first) / Math.max(1, last - first)))).toFixed(2);
    this.lanes.replaceChildren(
      ...[...grouped(findings)].map(([name, episodes]) => {
        const bars = episodes.map((episode) => {
          const until = episode.state === "closed" ? episode.last_step : last;
          const end = episode.state === "closed" ? whole(until) : "now";
          const told = `${episode.severity}, steps ${whole(episode.first_step)} to ${end}: ${episode.summary}`;
          const bar = element("i", { class: episode.severity, title: told });
          bar.style.left = `${place(episode.first_step)}%`;
          bar.style.width = `max(4px, ${(place(until) - place(episode.first_step)).toFixed(2)}%)`;
          return bar;
        });
        const told = episodes.map(({ first_step: from }) => whole(from)).join(", ");
        const lane = { class: "lane", role: "img", "aria-label": `from step ${told}` };
        return element("li", {}, element("span", {}, name), element("span", lane, ...bars));
      }),
    );
  }
}

function grouped(findings) {
  const lanes = new Map();
  for (const finding of findings) {
    const name = finding.layer ? `${finding.rule} in ${finding.layer}` : finding.rule;
    lanes.set(name, [...(lanes.get(name) ?? []), finding]);
  }
  return lanes;
}
