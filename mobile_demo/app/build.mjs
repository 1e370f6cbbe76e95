// Builds the page into mobile_demo/dist: modules bundled, names by content, the runtime copied from node_modules.
// `node app/build.mjs [OUT]` from mobile_demo; prints the sizes.
import { createHash } from "node:crypto";
import { cp, mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const APP = dirname(fileURLToPath(import.meta.url));
const DIST = resolve(process.argv[2] ?? join(APP, "..", "dist"));
const COMPRESSED_LIMIT = 150_000; // bytes of JavaScript without the runtime
const RUNTIME_FILES = ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"];

const require = createRequire(import.meta.url);
const runtimeFolder = dirname(require.resolve("onnxruntime-web/wasm"));
const runtimeVersion = JSON.parse(await readFile(join(runtimeFolder, "..", "package.json"), "utf8")).version;
const runtimePath = `ort-${runtimeVersion}`;

/** The runtime stays a file of its own: twelve megabytes of WASM that change only with its version. */
const runtimeApart = {
  name: "runtime-apart",
  setup(builder) {
    builder.onResolve({ filter: /^onnxruntime-web(\/wasm)?$/ }, () => ({
      path: `./${runtimePath}/ort.wasm.min.mjs`,
      external: true,
    }));
  },
};

const common = {
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  legalComments: "none",
  plugins: [runtimeApart],
  logLevel: "warning",
};

await rm(DIST, { recursive: true, force: true });
await mkdir(join(DIST, runtimePath), { recursive: true });
for (const file of RUNTIME_FILES) await cp(join(runtimeFolder, file), join(DIST, runtimePath, file));
await mkdir(join(DIST, "icons"));
for (const file of await readdir(join(APP, "icons"))) {
  if (/\.(png|svg)$/.test(file)) await cp(join(APP, "icons", file), join(DIST, "icons", file));
}
await cp(join(APP, "manifest.webmanifest"), join(DIST, "manifest.webmanifest"));

const worker = await bundled(join(APP, "..", "sdk", "src", "drafter_worker.ts"), "drafter");
const script = await bundled(join(APP, "src", "main.ts"), "main", { WORKER: JSON.stringify(worker) });
const style = await bundled(join(APP, "style.css"), "style");
const page = (await readFile(join(APP, "index.html"), "utf8"))
  .replace('href="style.css"', `href="${style}"`)
  .replace('src="main.js"', `src="${script}"`);
await writeFile(join(DIST, "index.html"), page);

const files = (await listed(DIST)).filter((file) => file !== "index.html");
const version = createHash("sha256");
for (const file of ["index.html", ...files]) version.update(file).update(await readFile(join(DIST, file)));
const { outputFiles } = await build({
  ...common,
  format: "iife",
  entryPoints: [join(APP, "src", "service_worker.ts")],
  write: false,
  define: { FILES: JSON.stringify(["./", ...files]), VERSION: JSON.stringify(version.digest("hex").slice(0, 16)) },
});
await writeFile(join(DIST, "sw.js"), outputFiles[0].contents); // its name stays: browsers look there for news

let total = 0;
for (const file of ["sw.js", script, worker]) {
  const size = gzipSync(await readFile(join(DIST, file)), { level: 9 }).length;
  total += size;
  console.log(`${file}: ${(size / 1000).toFixed(1)} kB compressed`);
}
console.log(`JavaScript without the runtime: ${(total / 1000).toFixed(1)} kB compressed`);
if (total > COMPRESSED_LIMIT) throw new Error(`more than ${COMPRESSED_LIMIT / 1000} kB of JavaScript`);

/** Bundles one entry; returns the name by its content. */
async function bundled(entry, name, define = {}) {
  const { outputFiles } = await build({
    ...common,
    entryPoints: [entry],
    write: false,
    define,
  });
  const { contents } = outputFiles[0];
  const extension = entry.endsWith(".css") ? "css" : "js";
  const hashed = `${name}-${createHash("sha256").update(contents).digest("hex").slice(0, 8).toUpperCase()}.${extension}`;
  await writeFile(join(DIST, hashed), contents);
  return hashed;
}

/** All files below a folder, with `/`, sorted. */
async function listed(folder, prefix = "") {
  const found = [];
  for (const entry of await readdir(join(folder, prefix), { withFileTypes: true })) {
    const name = prefix === "" ? entry.name : `${prefix}/${entry.name}`;
    if (entry.isDirectory()) found.push(...(await listed(folder, name)));
    else found.push(name);
  }
  return found.sort();
}
