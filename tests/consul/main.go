// Consul's agent. Consul's own module replaces parts of itself by folders, so it cannot be
// installed by name, and not all of its commands build outside it.
package main

import (
	"os"

	mcli "github.com/mitchellh/cli"

	"github.com/hashicorp/consul/command/agent"
	"github.com/hashicorp/consul/command/cli"
)

func main() {
	ui := &cli.BasicUI{BasicUi: mcli.BasicUi{Writer: os.Stdout, ErrorWriter: os.Stderr}}
	// The first argument is the command: `agent`.
	os.Exit(agent.New(ui).Run(os.Args[2:]))
}
