// A table whose columns sort: by a button in each heading, so by keyboard too.

import { element, Keyed, mark, say } from "./element.js";

/**
 * columns: [{name, value(row), text(row), numeric, ascending}]; value sorts (null last), text shows. keyOf(row) keeps a row's element.
 * options: decorate(cell, column, row) for what text alone cannot say.
 */
export class SortableTable {
  constructor(columns, keyOf, { sortBy = 0, decorate = null, label = "" } = {}) {
    this.columns = columns;
    this.decorate = decorate;
    this.sortBy = sortBy;
    this.descending = !columns[sortBy].ascending;
    this.rows = [];
    this.head = columns.map((column, index) =>
      element("th", { scope: "col", class: column.numeric ? "number" : null }, element("button", { onclick: () => this.sort(index) }, column.name)),
    );
    this.body = element("tbody");
    this.root = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
      element("table", {}, element("thead", {}, element("tr", {}, ...this.head)), this.body));
    this.list = new Keyed(this.body, keyOf, () => this.row());
  }

  sort(index) {
    this.descending = this.sortBy === index ? !this.descending : !this.columns[index].ascending;
    this.sortBy = index;
    this.show(this.rows);
  }

  /** Columns in which no row says anything are hidden. */
  show(rows) {
    this.rows = rows;
    const { value } = this.columns[this.sortBy];
    const sign = this.descending ? -1 : 1;
    const compare = (one, other) => {
      const [a, b] = [value(one), value(other)];
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
    };
    this.columns.forEach((column, index) => {
      const shown = this.sortBy === index ? (this.descending ? "descending" : "ascending") : "none";
      this.head[index].setAttribute("aria-sort", shown);
      this.head[index].hidden = column.hidden = !column.always && rows.length > 0 && rows.every((row) => column.text(row) === "");
    });
    this.list.update([...rows].sort(compare));
  }

  row() {
    const cells = this.columns.map((column) => element("td", { class: column.numeric ? "number" : null }));
    return {
      root: element("tr", {}, ...cells),
      update: (row) => {
        this.columns.forEach((column, index) => {
          const cell = cells[index];
          cell.hidden = column.hidden;
          if (this.decorate?.(cell, column, row)) return;
          say(cell, column.text(row));
        });
      },
    };
  }
}

/** Marks a cell as bad news, or not. */
export const alarm = (cell, bad, base) => mark(cell, [base, bad ? "bad" : ""].filter(Boolean).join(" "));
