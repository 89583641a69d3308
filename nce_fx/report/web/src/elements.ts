// Making elements: text is always text, never markup.

export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Record<string, string> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function byId<T extends HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

/** A long name or path that may break after its dots and slashes. */
export function breakable(name: string): (Node | string)[] {
  return name.split(/(?<=[./])/).flatMap((part, index) => (index ? [element("wbr"), part] : [part]));
}
