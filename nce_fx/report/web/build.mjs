// Bundles src/ into ../assets/page.js and copies the style sheet; both carry the SHA-256 of what they were built from,
// which a test compares. The licence of every bundled package stands at the end of the script.
import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join, sep } from "node:path";
import { build } from "esbuild";

const here = import.meta.dirname;
const sources = ["package-lock.json", "build.mjs", ...readdirSync(join(here, "src")).map((name) => `src/${name}`)].sort();
const hash = createHash("sha256");
for (const name of sources) hash.update(name).update("\0").update(readFileSync(join(here, name)));
const stamp = `built from ${hash.digest("hex")}`;

const result = await build({
  entryPoints: [join(here, "src/main.ts")],
  bundle: true,
  minify: true,
  write: false,
  metafile: true,
  format: "iife",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  absWorkingDir: here,
});

const packages = new Set();
for (const input of Object.keys(result.metafile.inputs)) {
  const found = input.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)\//);
  if (found) packages.add(found[1]);
}
const notices = new Map();
for (const name of [...packages].sort()) {
  const folder = join(here, "node_modules", ...name.split("/"));
  const about = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const file = readdirSync(folder).find((each) => /^licen[cs]e/i.test(each));
  const text = file ? readFileSync(join(folder, file), "utf8").trim() : `${about.license}`;
  notices.set(text, [...(notices.get(text) ?? []), `${name} ${about.version} (${about.license})`]);
}
const licences = [...notices].map(([text, names]) => `${names.join("\n")}\n\n${text}`).join(`\n\n${"-".repeat(72)}\n\n`);

// The script stands inside an HTML page: nothing in it may look like the end of a script, or like a comment's.
const safe = (text) => text.replaceAll("*/", "* /").replaceAll("</script", "<\\/script").replaceAll("<!--", "<\\!--");
const script = result.outputFiles[0].text.replaceAll("</script", "<\\/script").replaceAll("<!--", "<\\!--");
writeFileSync(join(here, "../assets/page.js"), `/* ${stamp} */\n${script}\n/*\n${safe(licences)}\n*/\n`);
writeFileSync(join(here, "../assets/page.css"), readFileSync(join(here, "src/page.css"), "utf8"));
console.log(`page.js: ${script.length} bytes, ${packages.size} packages`, [...packages].join(" ").slice(0, 400), dirname(here) + sep);
