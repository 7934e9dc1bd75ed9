// CoreDNS with its etcd plugin, and no others but the one that keeps it on loopback.
package main

import (
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/etcd"
)

func main() {
	coremain.Run()
}
