// Light, dark, or as the system says; the choice is kept where the browser lets a page keep something.

import { byId } from "./elements";

const CHOICES = ["system", "light", "dark"];
const WORDS: Record<string, string> = { system: "as the system says", light: "light", dark: "dark" };

export function wireTheme(onChange: () => void): void {
  const button = byId("theme");
  const apply = (choice: string): void => {
    if (choice === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice;
    button.setAttribute("aria-label", `Colours: ${WORDS[choice]}`);
    button.title = `Colours: ${WORDS[choice]}`;
    button.dataset.choice = choice;
  };
  apply(kept());
  button.addEventListener("click", () => {
    const next = CHOICES[(CHOICES.indexOf(button.dataset.choice!) + 1) % CHOICES.length];
    apply(next);
    keep(next);
    onChange();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", onChange);
  if (kept() !== "system") onChange();
}

function kept(): string {
  try {
    const choice = localStorage.getItem("nce-fx-theme") ?? "system";
    return CHOICES.includes(choice) ? choice : "system";
  } catch {
    return "system";
  }
}

function keep(choice: string): void {
  try {
    localStorage.setItem("nce-fx-theme", choice);
  } catch {
    // A page from disk may not be let; then the choice lasts as long as the page.
  }
}
