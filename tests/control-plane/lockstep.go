package main

import (
	"errors"
	"fmt"
	"io"
	"slices"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// oneAtATime is a server that reads a request, writes what it has to say to it, and only then reads the next: a client that waits
// for its own writes before it reads waits for ever.
type oneAtATime struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	snapshots cache.SnapshotCache
	out       *out
}

// told is what a client was last sent of a type.
type told struct {
	version, nonce string
	names          []string
}

func (s *oneAtATime) StreamAggregatedResources(
	stream discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer,
) error {
	last := map[string]told{}
	for count := 1; ; count++ {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		s.out.say(map[string]request{"request": stateOfTheWorld(r)})
		kind, names := r.GetTypeUrl(), slices.Sorted(slices.Values(r.GetResourceNames()))
		before, asked := last[kind]
		if r.GetResponseNonce() != before.nonce {
			continue
		}
		snapshot, err := s.snapshots.GetSnapshot("everybody")
		if err != nil {
			return status.Error(codes.Unavailable, err.Error())
		}
		version := snapshot.GetVersion(kind)
		if asked && before.version == version && slices.Equal(before.names, names) {
			continue
		}
		response := &discovery.DiscoveryResponse{TypeUrl: kind, VersionInfo: version, Nonce: fmt.Sprint(count)}
		for name, resource := range snapshot.GetResources(kind) {
			if _, wanted := slices.BinarySearch(names, name); !wanted && len(names) > 0 {
				continue
			}
			body, err := anypb.New(resource)
			if err != nil {
				return err
			}
			response.Resources = append(response.Resources, body)
		}
		if err := stream.Send(response); err != nil {
			return err
		}
		last[kind] = told{version: version, nonce: response.Nonce, names: names}
	}
}
