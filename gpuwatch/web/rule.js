// A rule's page: the Markdown that `gpuwatch explain` prints, made into elements, never into markup.

import { element } from "./element.js";

export class RulePage {
  constructor(_, name) {
    this.title = `${name} · gpuwatch`;
    this.root = element("article", { class: "rule" }, element("p", { class: "empty" }, "reading …"));
    this.read(name);
  }

  async read(name) {
    let text = null;
    try {
      const response = await fetch(`rules/${encodeURIComponent(name)}`);
      text = response.ok ? await response.text() : null;
    } catch {
      // said below
    }
    this.root.replaceChildren(...(text === null ? [element("p", { class: "empty" }, `No text for the rule ${name}.`)] : blocks(text)));
  }

  update() {}
  close() {}
}

/** Headings, paragraphs, lists, code blocks and tables: what the rules' pages are made of. */
function blocks(markdown) {
  const found = [];
  const pieces = markdown.split(/\n{2,}/);
  for (const piece of pieces) {
    const lines = piece.split("\n").filter((line) => line.trim());
    if (!lines.length) continue;
    const heading = lines[0].match(/^(#{1,4}) (.*)/);
    if (heading) found.push(element(`h${heading[1].length}`, {}, ...inline(heading[2])));
    const rest = heading ? lines.slice(1) : lines;
    if (!rest.length) continue;
    if (rest[0].startsWith("|")) found.push(table(rest));
    else if (/^([*-]|\d+\.) /.test(rest[0])) found.push(list(rest));
    else if (rest.every((line) => line.startsWith("    "))) found.push(element("pre", {}, rest.map((line) => line.slice(4)).join("\n")));
    else if (rest[0].startsWith("```")) found.push(element("pre", {}, rest.filter((line) => !line.startsWith("```")).join("\n")));
    else found.push(element("p", {}, ...inline(rest.join(" "))));
  }
  return found;
}

function table(lines) {
  const rows = lines.map((line) => line.replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim()));
  const row = (cells, tag) => element("tr", {}, ...cells.map((cell) => element(tag, {}, ...inline(cell))));
  const body = rows.slice(2).map((cells) => row(cells, "td"));
  return element("div", { class: "scroll" }, element("table", {}, element("thead", {}, row(rows[0], "th")), element("tbody", {}, ...body)));
}

function list(lines) {
  const items = [];
  for (const line of lines) {
    const item = line.match(/^(?:[*-]|\d+\.) (.*)/);
    if (item) items.push(item[1]);
    else items[items.length - 1] += ` ${line.trim()}`;
  }
  const tag = /^\d/.test(lines[0]) ? "ol" : "ul";
  return element(tag, {}, ...items.map((item) => element("li", {}, ...inline(item))));
}

function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) => {
    if (part.startsWith("`")) return element("code", {}, part.slice(1, -1));
    return part.startsWith("**") ? element("strong", {}, part.slice(2, -2)) : part;
  });
}
