// Consul itself: its module replaces parts of itself by folders, so it cannot be installed by name.
package main

import (
	"os"

	mcli "github.com/mitchellh/cli"

	"github.com/hashicorp/consul/command"
	"github.com/hashicorp/consul/command/cli"
)

func main() {
	ui := &cli.BasicUI{BasicUi: mcli.BasicUi{Writer: os.Stdout, ErrorWriter: os.Stderr}}
	program := &mcli.CLI{Args: os.Args[1:], Commands: command.RegisteredCommands(ui), Name: "consul", HelpWriter: os.Stdout, ErrorWriter: os.Stderr}
	status, err := program.Run()
	if err != nil {
		status = 1
	}
	os.Exit(status)
}
