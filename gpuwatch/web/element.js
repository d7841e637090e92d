// Elements of the page. Text is only ever set as text: names of runs, layers and commands are anybody's input.

/** element("a", {class: "run", href: "#/"}, "text", child, ...); "onclick" and the like take functions; null is left out. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Sets text only where it differs, so that a selection and a screen reader are left alone. */
export function say(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** Sets the class to exactly `names`, where it differs. */
export function mark(target, names) {
  if (target.className !== names) target.className = names;
}

/**
 * Brings the children of `parent` in line with `items`, one element each, in their order. make(item) gives
 * {root, update(item), close?()}; an element stays as long as its key does, so focus and scrolling stay too.
 */
export class Keyed {
  constructor(parent, keyOf, make) {
    this.parent = parent;
    this.keyOf = keyOf;
    this.make = make;
    this.parts = new Map();
  }

  update(items) {
    const kept = new Map();
    let next = this.parent.firstElementChild;
    for (const item of items) {
      const key = this.keyOf(item);
      if (kept.has(key)) continue;
      const part = this.parts.get(key) ?? this.make(item);
      this.parts.delete(key);
      kept.set(key, part);
      if (part.root === next) next = next.nextElementSibling;
      else this.parent.insertBefore(part.root, next);
      part.update(item);
    }
    this.close();
    this.parts = kept;
  }

  close() {
    for (const part of this.parts.values()) {
      part.close?.();
      part.root.remove();
    }
    this.parts = new Map();
  }
}
