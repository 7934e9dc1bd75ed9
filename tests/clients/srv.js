// Looks up the SRV records of each name through c-ares, at the server given first, and prints how
// many there are and how many targets are distinct.
const { Resolver } = require("dns").promises;

(async () => {
  const [server, ...names] = process.argv.slice(2);
  const resolver = new Resolver({ timeout: 10000, tries: 2 });
  resolver.setServers([server]);
  for (const name of names) {
    const records = await resolver.resolveSrv(name);
    const targets = new Set(records.map((record) => record.name));
    console.log(name, records.length, targets.size);
  }
})();
