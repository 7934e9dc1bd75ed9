// CoreDNS with its etcd plugin and none of the others: what the benchmark of answers compares with.
package main

import (
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/etcd"
)

func main() {
	coremain.Run()
}
