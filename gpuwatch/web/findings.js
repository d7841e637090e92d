// What is wrong with a run: severity, where, what, and what to do about it.

import { element, Keyed, mark, say } from "./element.js";
import { whole } from "./quantities.js";

const SEVEREST = ["critical", "warning", "info"];

/** The open findings of a run's ranks, severest first, each rule and layer once: with how many ranks have it. */
export function merged(findings) {
  const once = new Map();
  for (const finding of findings) {
    const key = `${finding.rule} ${finding.layer}`;
    const known = once.get(key);
    if (known) known.ranks += 1;
    else once.set(key, { ...finding, ranks: 1 });
  }
  const order = (finding) => SEVEREST.indexOf(finding.severity);
  return [...once.values()].sort((one, other) => order(one) - order(other) || one.first_step - other.first_step);
}

export class Findings {
  constructor() {
    this.root = element("ul", { class: "findings" });
    this.list = new Keyed(this.root, (finding) => `${finding.rule} ${finding.layer} ${finding.first_step}`, row);
  }

  update(findings) {
    this.root.hidden = findings.length === 0;
    this.list.update(findings);
  }
}

function row() {
  const rule = element("a");
  const where = element("span", { class: "where" });
  const summary = element("span");
  const action = element("span", { class: "action" });
  const root = element("li", {}, rule, " ", where, element("br"), summary, " ", action);
  return {
    root,
    update(finding) {
      const closed = finding.state === "closed";
      mark(root, `${finding.severity}${closed ? " closed" : ""}`);
      say(rule, `${finding.severity}: ${finding.rule}`);
      rule.href = `#/rule/${encodeURIComponent(finding.rule)}`;
      const steps = closed
        ? `steps ${whole(finding.first_step)} to ${whole(finding.last_step)}`
        : `since step ${whole(finding.first_step)}`;
      const ranks = finding.ranks > 1 ? ` on ${finding.ranks} ranks` : "";
      say(where, `${finding.layer ? `in ${finding.layer} ` : ""}${steps}${ranks}`);
      say(summary, finding.summary);
      say(action, finding.action);
    },
  };
}
