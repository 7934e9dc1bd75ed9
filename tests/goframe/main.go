// Real GoFrame programs for the tests of svcdns: one binary, with one role per run.
//
//	goframe http NAME ADDRESS  HTTP server that registers as NAME
//	goframe grpc NAME ADDRESS  gRPC server (grpc-go's health service) that registers as NAME
//	goframe get URL            HTTP client without discovery, which uses the machine's resolver
//	goframe fetch URL          Go's own HTTP client
//	goframe discover URL       HTTP client with GoFrame's own discovery
//	goframe check TARGET       gRPC client of the health service at host:port or a service name
//
// The variable REGISTRY says where to register: "etcd HOST:PORT" or "file DIRECTORY". Without it, a
// gRPC server registers in GoFrame's default file registry and an HTTP server nowhere. GoFrame's own
// GF_GSVC_… variables set the rest. With CERTIFICATE and KEY, two files, an HTTP server uses TLS.
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/gogf/gf/contrib/registry/etcd/v2"
	"github.com/gogf/gf/contrib/registry/file/v2"
	"github.com/gogf/gf/contrib/rpc/grpcx/v2"
	"github.com/gogf/gf/v2/frame/g"
	"github.com/gogf/gf/v2/net/ghttp"
	"github.com/gogf/gf/v2/net/gsvc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	if len(os.Args) < 3 {
		fail("usage: goframe http|grpc NAME ADDRESS | get|fetch|discover URL | check TARGET")
	}
	registry := chosenRegistry()
	switch role := os.Args[1]; role {
	case "http":
		serveHTTP(os.Args[2], os.Args[3], registry)
	case "grpc":
		serveGRPC(os.Args[2], os.Args[3], registry)
	case "get", "discover":
		get(os.Args[2], role == "discover", registry)
	case "fetch":
		fetch(os.Args[2])
	case "check":
		check(os.Args[2], registry)
	default:
		fail("no role " + role)
	}
}

func chosenRegistry() gsvc.Registry {
	kind, where, _ := strings.Cut(os.Getenv("REGISTRY"), " ")
	switch kind {
	case "etcd":
		return etcd.New(where)
	case "file":
		return file.New(where)
	default:
		return nil
	}
}

func serveHTTP(name, address string, registry gsvc.Registry) {
	// Must precede g.Server, which copies the registry.
	if registry != nil {
		gsvc.SetRegistry(registry)
	}
	server := g.Server(name)
	server.SetAddr(address)
	if certificate := os.Getenv("CERTIFICATE"); certificate != "" {
		server.EnableHTTPS(certificate, os.Getenv("KEY"))
	}
	server.BindHandler("/", func(r *ghttp.Request) {
		// Tells instances apart.
		r.Response.Header().Set("Instance", strconv.Itoa(os.Getpid()))
		r.Response.Writef("page of %s, Host %s\n", name, r.Host)
	})
	server.Run()
}

func serveGRPC(name, address string, registry gsvc.Registry) {
	if registry != nil {
		grpcx.Resolver.Register(registry)
	}
	config := grpcx.Server.NewConfig()
	config.Name = name
	config.Address = address
	server := grpcx.Server.New(config)
	healthpb.RegisterHealthServer(server.Server, health.NewServer())
	server.Run()
}

func get(url string, discover bool, registry gsvc.Registry) {
	client := g.Client()
	client.SetTimeout(10 * time.Second)
	if discover {
		client.SetDiscovery(registry)
	}
	response, err := client.Get(context.Background(), url)
	if err != nil {
		fail(err.Error())
	}
	defer response.Close()
	fmt.Println(response.ReadAllString())
}

func fetch(url string) {
	response, err := http.Get(url)
	if err != nil {
		fail(err.Error())
	}
	defer response.Body.Close()
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		fail(err.Error())
	}
}

func check(target string, registry gsvc.Registry) {
	if registry != nil {
		grpcx.Resolver.Register(registry)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client := healthpb.NewHealthClient(grpcx.Client.MustNewGrpcClientConn(target))
	response, err := client.Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		fail(err.Error())
	}
	fmt.Println(response.GetStatus())
}

func fail(message string) {
	fmt.Fprintln(os.Stderr, message)
	os.Exit(1)
}
