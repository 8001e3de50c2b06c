// Written by `flumen plugin build`. Arguments: componentize-js, the module, the interface, the world, the component.
import { writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [tool, sourcePath, witPath, worldName, output] = process.argv.slice(2);
const { componentize } = await import(pathToFileURL(`${tool}/src/componentize.js`).href);
// Without these features the engine imports no WASI.
const disableFeatures = ["random", "stdio", "clocks", "http", "fetch-event"];
const { component } = await componentize({ sourcePath, witPath, worldName, disableFeatures });
writeFileSync(output, component);
