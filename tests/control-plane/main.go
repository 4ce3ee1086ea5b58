// Command control-plane is an xDS server made of go-control-plane, for the tests of our client: it serves whatever snapshot it is
// told on standard input, state of the world and delta, and tells on standard output what its clients ask for and refuse.
//
// Input, one JSON object a line:
//
//	{"version": "1", "clusters": [...], "endpoints": [...], "routes": [...], "listeners": [...]}
//	{"version": "2", "generate": 10000, "backend": "127.0.0.1:8080"}
//
// The first serves these resources, written as Envoy's JSON; the second a mesh of that many services, all at one address.
// Output, one JSON object a line: {"listening": ADDRESS}, {"serves": VERSION}, {"request": {...}} for each request, {"load": {...}} for
// each cluster in a report of load.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"sync"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	loadstats "github.com/envoyproxy/go-control-plane/envoy/service/load_stats/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
)

// everybody is the one group of nodes: each client gets the same.
type everybody struct{}

func (everybody) ID(*corev3.Node) string { return "everybody" }

// out writes whole lines from any goroutine.
type out struct {
	sync.Mutex
	lines *json.Encoder
}

func (o *out) say(line any) {
	o.Lock()
	defer o.Unlock()
	if err := o.lines.Encode(line); err != nil {
		os.Exit(0) // Whoever listened is gone.
	}
}

// request is what a client asked for, or what it said of a response.
type request struct {
	Delta   bool     `json:"delta"`
	Type    string   `json:"type"`
	Version string   `json:"version,omitempty"`
	Nonce   string   `json:"nonce,omitempty"`
	Names   int      `json:"names"`
	Removed []string `json:"removed,omitempty"`
	Error   string   `json:"error,omitempty"`
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "where to listen")
	lockstep := flag.Bool("lockstep", false, "read requests only between writes, state of the world only")
	consistent := flag.Bool("consistent", false, "answer a request of names only when it names the whole snapshot")
	flag.Parse()
	out := &out{lines: json.NewEncoder(os.Stdout)}
	if err := run(out, *listen, *lockstep, *consistent); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(out *out, listen string, lockstep, consistent bool) error {
	snapshots := cache.NewSnapshotCache(consistent, everybody{}, nil)
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	grpcServer := grpc.NewServer()
	var service discovery.AggregatedDiscoveryServiceServer
	if lockstep {
		service = &oneAtATime{snapshots: snapshots, out: out}
	} else {
		service = server.NewServer(context.Background(), snapshots, tell(out))
	}
	discovery.RegisterAggregatedDiscoveryServiceServer(grpcServer, service)
	loadstats.RegisterLoadReportingServiceServer(grpcServer, &loads{out: out})
	failed := make(chan error, 1)
	go func() { failed <- grpcServer.Serve(listener) }()
	out.say(map[string]string{"listening": listener.Addr().String()})
	go func() { failed <- obey(out, snapshots) }()
	return <-failed
}

// obey serves what standard input says, and returns when it ends: that is how this process ends with its parent.
func obey(out *out, snapshots cache.SnapshotCache) error {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		snapshot, version, err := read(lines.Bytes())
		if err != nil {
			return err
		}
		if err := snapshots.SetSnapshot(context.Background(), "everybody", snapshot); err != nil {
			return err
		}
		out.say(map[string]string{"serves": version})
	}
	return lines.Err()
}

// tell reports each request of the library's own server.
func tell(out *out) server.Callbacks {
	return server.CallbackFuncs{
		StreamRequestFunc: func(_ int64, r *discovery.DiscoveryRequest) error {
			out.say(map[string]request{"request": stateOfTheWorld(r)})
			return nil
		},
		StreamDeltaRequestFunc: func(_ int64, r *discovery.DeltaDiscoveryRequest) error {
			out.say(map[string]request{"request": {
				Delta:   true,
				Type:    r.GetTypeUrl(),
				Nonce:   r.GetResponseNonce(),
				Names:   len(r.GetResourceNamesSubscribe()),
				Removed: r.GetResourceNamesUnsubscribe(),
				Error:   r.GetErrorDetail().GetMessage(),
			}})
			return nil
		},
	}
}

func stateOfTheWorld(r *discovery.DiscoveryRequest) request {
	return request{
		Type:    r.GetTypeUrl(),
		Version: r.GetVersionInfo(),
		Nonce:   r.GetResponseNonce(),
		Names:   len(r.GetResourceNames()),
		Error:   r.GetErrorDetail().GetMessage(),
	}
}
