// What is known of the selected operation or module, beside the graph.

import { brief, changeOf, groups, labelOf, MARKS, nodes, sensitivityOf, shown, view, WORDS, type Operation } from "./data";
import { chartWidth, weightChart } from "./charts";
import { changesOf, measures, together } from "./colours";
import { breakable, byId, element } from "./elements";
import { within, type Graph } from "./graph";
import type { Item, Module } from "./modules";

export function showDetails(graph: Graph, item: Item | null): void {
  const box = byId("details");
  if (!item) box.replaceChildren(...beginning(graph));
  else if (item.kind === "module") box.replaceChildren(...ofModule(graph, item));
  else box.replaceChildren(...ofOperation(graph, item.node));
  box.scrollTop = 0;
}

/** Where to look first: the groups that change most. */
function beginning(graph: Graph): HTMLElement[] {
  const hint = "Click an operation to see its channels, its group, its weights and its source line. Double-click a module to open or close it.";
  const parts: HTMLElement[] = [element("p", { class: "soft" }, hint)];
  const change = (id: string): number => Math.abs(Math.log(groups.get(id)!.after / groups.get(id)!.before));
  const most = [...groups.keys()].filter((id) => change(id) > 0).sort((a, b) => change(b) - change(a)).slice(0, 12);
  if (!most.length) return parts;
  const list = element("ul", { class: "members" });
  for (const id of most) {
    const group = groups.get(id)!;
    const node = [...nodes.values()].find((each) => group.producers.includes(each.name));
    const kind = group.after > group.before ? "wider" : "narrower";
    const entry = element("button", { type: "button", class: "link" }, ...breakable(id));
    entry.addEventListener("click", () => (node ? graph.show(node.id) : graph.light(id)));
    list.append(element("li", {}, element("span", { class: `mark ${kind}` }, MARKS[kind]), ` ${group.before} → ${group.after}  `, entry));
  }
  return [...parts, element("h3", {}, "Largest changes"), list];
}

function ofOperation(graph: Graph, node: Operation): HTMLElement[] {
  const change = changeOf(node);
  const parts: HTMLElement[] = [
    element("h3", {}, ...breakable(node.name)),
    element("p", { class: "soft" }, node.op, node.shape.length ? `, puts out ${node.shape.join(" × ")}` : ""),
  ];
  const around = modulesAround(graph, node);
  if (around.length) parts.push(element("p", { class: "around soft" }, "in ", ...around));
  if (node.channels) {
    const [before, after] = node.channels;
    const text = before === after ? `${after} channels, ${WORDS[change]}` : `${before} → ${after} channels, ${WORDS[change]}`;
    parts.push(element("p", { class: `verdict ${change}` }, element("span", { "aria-hidden": "true" }, MARKS[change] || "="), ` ${text}`));
  }
  const order = [...view.quantities.map((each) => each.name), ...Object.keys(node.costs)];
  const rows = Object.entries(node.costs).sort(([a], [b]) => order.indexOf(a) - order.indexOf(b));
  if (rows.length) {
    const head = element("tr", {}, ...["cost", view.against, view.after].map((text) => element("th", { scope: "col" }, text)));
    const cell = (value: number): HTMLElement => element("td", { title: shown(value) }, value >= 1e6 ? brief(value) : shown(value));
    const body = rows.map(([name, values]) => element("tr", {}, element("th", { scope: "row" }, labelOf(name)), ...values.map(cell)));
    parts.push(element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
  }
  const facts = element("dl");
  const fact = (name: string, value: string | undefined) => value && facts.append(element("dt", {}, name), element("dd", {}, ...breakable(value)));
  const score = sensitivityOf(node);
  fact("sensitivity", score === undefined ? undefined : `${shown(score)} (${view.metric})`);
  fact("weights", node.weight ? `${node.weight.bits} bit, ${node.weight.quantizer}` : undefined);
  fact("output rounded to", node.bits ? `${node.bits} bit` : undefined);
  fact("source", node.source || undefined);
  parts.push(facts);
  if (node.weight) {
    const chart = weightChart(node.weight, chartWidth("details", 420));
    chart.setAttribute("aria-hidden", "true");
    const said = node.weight.levels.length <= 16 ? `: ${node.weight.levels.map(([level, count]) => `${shown(level)} (${shown(count)} weights)`).join(", ")}` : "";
    parts.push(
      element("h4", {}, "Weights as they are kept, and their levels"),
      element("figure", {}, chart, element("figcaption", { class: "soft" }, `${node.weight.levels.length} levels${said}`)),
    );
  }
  for (const id of node.groups) parts.push(...ofGroup(graph, id));
  return parts;
}

/** The modules that hold an operation, from the outside in, to be selected. */
function modulesAround(graph: Graph, node: Operation): (Node | string)[] {
  const links: (Node | string)[] = [];
  for (let at = graph.modules.leaves.get(node.id)?.parent ?? null; at; at = at.parent) {
    const module = at;
    const link = element("button", { type: "button", class: "link" }, ...breakable(within(module)));
    link.addEventListener("click", () => graph.pick(module));
    links.unshift(link, " › ");
  }
  return links.slice(0, -1);
}

function ofGroup(graph: Graph, id: string): HTMLElement[] {
  const group = groups.get(id);
  if (!group) return [];
  const parts: HTMLElement[] = [element("h4", {}, "Channel group ", element("span", { class: "name" }, ...breakable(group.id)))];
  if (group.pinned) parts.push(element("p", { class: "pinned why" }, "Pinned: ", group.pinned));
  const made = group.producers.length === 1 ? "One layer makes its channels" : `${group.producers.length} layers make its channels and change together`;
  const steps = group.step > 1 ? `, in steps of ${group.step}` : "";
  parts.push(
    element("p", { class: "soft" }, `${made}${steps}. The group is lit in the graph.`),
    members(graph, "made by", group.producers),
  );
  if (group.consumers.length) parts.push(members(graph, "read by", group.consumers));
  return parts;
}

function members(graph: Graph, title: string, names: string[]): HTMLElement {
  const list = element("ul", { class: "members" });
  for (const name of names) {
    const node = [...nodes.values()].find((each) => each.name === name || `${each.name}.weight` === name);
    const entry = node ? element("button", { type: "button", class: "link" }, ...breakable(name)) : element("span", {}, name);
    if (node) entry.addEventListener("click", () => graph.show(node.id));
    list.append(element("li", {}, entry));
  }
  return element("div", {}, element("p", { class: "soft" }, title), list);
}

function ofModule(graph: Graph, module: Module): HTMLElement[] {
  const counts = changesOf(module.below);
  const said = (["wider", "narrower", "same", "pinned"] as const).filter((change) => counts[change]);
  const toggle = element("button", { type: "button" }, graph.modules.open.has(module) ? "Close this module" : "Open this module");
  toggle.addEventListener("click", () => {
    graph.toggle(module);
    graph.pick(module);
  });
  const facts = element("dl");
  for (const measure of measures().filter((each) => each.sums)) {
    const value = together(measure, module.below);
    if (value !== undefined) facts.append(element("dt", {}, measure.label), element("dd", {}, shown(value)));
  }
  return [
    element("h3", {}, ...breakable(module.name)),
    element("p", { class: "soft" }, `a module of ${module.below.length} operations`),
    element("ul", { class: "changes" }, ...said.map((change) => element("li", { class: change }, element("b", {}, `${MARKS[change] || "="} ${counts[change]}`), ` ${WORDS[change]}`))),
    facts,
    toggle,
  ];
}
