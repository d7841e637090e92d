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
    const lanes = Map.groupBy ? Map.groupBy(findings, lane) : grouped(findings);
    this.lanes.replaceChildren(
      ...[...lanes].map(([name, episodes]) => {
        const bars = episodes.map((episode) => {
          const until = episode.state === "closed" ? episode.last_step : last;
          const told = `${episode.severity}, steps ${whole(episode.first_step)} to ${episode.state === "closed" ? whole(until) : "now"}: ${episode.summary}`;
          const bar = element("i", { class: episode.severity, title: told });
          bar.style.left = `${place(episode.first_step)}%`;
          bar.style.width = `max(4px, ${(place(until) - place(episode.first_step)).toFixed(2)}%)`;
          return bar;
        });
        const told = episodes.map(({ first_step: from }) => whole(from)).join(", ");
        return element("li", {}, element("span", {}, name), element("span", { class: "lane", role: "img", "aria-label": `from step ${told}` }, ...bars));
      }),
    );
  }
}

const lane = ({ rule, layer }) => (layer ? `${rule} in ${layer}` : rule);

function grouped(findings) {
  const lanes = new Map();
  for (const finding of findings) lanes.set(lane(finding), [...(lanes.get(lane(finding)) ?? []), finding]);
  return lanes;
}
