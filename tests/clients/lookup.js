// Looks every name up through the C library (dns.lookup) and through c-ares (dns.resolve4 and dns.resolve6), and fetches its page.
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
    const looked = (await dns.lookup(name, { all: true }).catch(none)).map((entry) => entry.address).sort();
    const resolved = [...(await dns.resolve4(name).catch(none)), ...(await dns.resolve6(name).catch(none))].sort();
    if (looked.join() !== resolved.join()) throw new Error(`${name}: lookup ${looked}, resolve ${resolved}`);
    console.log(name, looked.join(" ") || "none");
    if (looked.length) process.stdout.write(await get(name));
  }
})();
