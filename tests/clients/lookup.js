// Looks up each name through the C library (dns.lookup) and through c-ares (dns.resolve4 and
// dns.resolve6), compares the results, and fetches its page.
const dns = require("dns").promises;
const http = require("http");

const none = () => [];
const get = (name) =>
  new Promise((resolve, reject) => {
    const request = http.get(`http://${name}/`, (response) => {
      let page = "";
      response.on("data", (part) => (page += part));
      response.on("end", () => resolve(page));
    });
    request.on("error", reject);
  });

(async () => {
  for (const name of process.argv.slice(2)) {
    const entries = await dns.lookup(name, { all: true }).catch(none);
    const found = entries.map((entry) => entry.address).sort();
    const v4 = await dns.resolve4(name).catch(none);
    const v6 = await dns.resolve6(name).catch(none);
    const resolved = [...v4, ...v6].sort();
    if (found.join() !== resolved.join()) {
      throw new Error(`${name}: lookup ${found}, resolve ${resolved}`);
    }
    console.log(name, found.join(" ") || "none");
    if (found.length) process.stdout.write(await get(name));
  }
})();
