// The plan as a table that sorts and filters.

import { byId } from "./elements";

export function wireTable(onGroup: (id: string) => void): void {
  const table = document.getElementById("groups") as HTMLTableElement | null;
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  [...table.tHead!.rows[0].cells].forEach((head, column) => {
    head.querySelector("button")!.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead!.rows[0].cells) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      rows.sort((a, b) => (rising ? 1 : -1) * compare(a.cells[column], b.cells[column]));
      body.append(...rows);
    });
  });

  const filter = byId<HTMLInputElement>("filter");
  const kinds = [...document.querySelectorAll<HTMLInputElement>("#kinds input")];
  const apply = (): void => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = new Set(kinds.filter((box) => box.checked).map((box) => box.value));
    for (const row of rows) {
      const text = row.textContent!.toLowerCase();
      row.hidden = !shown.has(row.dataset.change!) || !words.every((word) => text.includes(word));
    }
    const left = rows.filter((row) => !row.hidden).length;
    byId("shown").textContent = left === rows.length ? `${left} groups` : `${left} of ${rows.length} groups`;
  };
  filter.addEventListener("input", apply);
  for (const box of kinds) box.addEventListener("change", apply);
  apply();
  body.addEventListener("click", (event) => {
    const button = (event.target as HTMLElement).closest<HTMLElement>("button[data-group]");
    if (button) onGroup(button.dataset.group!);
  });
}

function compare(a: HTMLTableCellElement, b: HTMLTableCellElement): number {
  const [x, y] = [a.dataset.value, b.dataset.value];
  if (x !== undefined && y !== undefined) return Number(x || -Infinity) - Number(y || -Infinity) || 0;
  return a.textContent!.localeCompare(b.textContent!, "en", { numeric: true });
}
