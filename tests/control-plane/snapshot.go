package main

import (
	"encoding/json"
	"fmt"
	"net"
	"strconv"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// line is one line of input.
type line struct {
	Version   string            `json:"version"`
	Clusters  []json.RawMessage `json:"clusters"`
	Endpoints []json.RawMessage `json:"endpoints"`
	Routes    []json.RawMessage `json:"routes"`
	Listeners []json.RawMessage `json:"listeners"`
	Generate  int               `json:"generate"`
	Backend   string            `json:"backend"`
}

// read makes a snapshot of a line of input, which need not be consistent: that is for the client to cope with.
func read(text []byte) (*cache.Snapshot, string, error) {
	var line line
	if err := json.Unmarshal(text, &line); err != nil {
		return nil, "", err
	}
	resources := map[resource.Type][]types.Resource{}
	add := func(kind resource.Type, texts []json.RawMessage, empty func() proto.Message) error {
		for i, text := range texts {
			message := empty()
			if err := protojson.Unmarshal(text, message); err != nil {
				return fmt.Errorf("%s %d: %w", kind, i, err)
			}
			resources[kind] = append(resources[kind], message)
		}
		return nil
	}
	for _, err := range []error{
		add(resource.ClusterType, line.Clusters, func() proto.Message { return new(clusterv3.Cluster) }),
		add(resource.EndpointType, line.Endpoints, func() proto.Message { return new(endpointv3.ClusterLoadAssignment) }),
		add(resource.RouteType, line.Routes, func() proto.Message { return new(routev3.RouteConfiguration) }),
		add(resource.ListenerType, line.Listeners, func() proto.Message { return new(listenerv3.Listener) }),
	} {
		if err != nil {
			return nil, "", err
		}
	}
	if line.Generate > 0 {
		if err := generate(resources, line.Generate, line.Backend); err != nil {
			return nil, "", err
		}
	}
	snapshot, err := cache.NewSnapshot(line.Version, resources)
	return snapshot, line.Version, err
}

// generate adds a mesh of services on port 80, each with a cluster, an endpoint assignment and a virtual host of its own.
func generate(resources map[resource.Type][]types.Resource, count int, backend string) error {
	host, port, err := net.SplitHostPort(backend)
	if err != nil {
		return err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return err
	}
	ads := &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
	address := func(host string, port uint32) *corev3.Address {
		socket := &corev3.SocketAddress{Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port}}
		return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: socket}}
	}
	hosts := make([]*routev3.VirtualHost, 0, count)
	for i := range count {
		name := fmt.Sprintf("service-%d", i)
		resources[resource.ClusterType] = append(resources[resource.ClusterType], &clusterv3.Cluster{
			Name:                 name,
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads},
		})
		endpoint := &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
			Endpoint: &endpointv3.Endpoint{Address: address(host, uint32(number))},
		}}
		resources[resource.EndpointType] = append(resources[resource.EndpointType], &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints:   []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{endpoint}}},
		})
		forward := &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: name}}
		hosts = append(hosts, &routev3.VirtualHost{
			Name:    name,
			Domains: []string{name},
			Routes: []*routev3.Route{{
				Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
				Action: &routev3.Route_Route{Route: forward},
			}},
		})
	}
	router, err := anypb.New(&routerv3.Router{})
	if err != nil {
		return err
	}
	manager, err := anypb.New(&hcmv3.HttpConnectionManager{
		StatPrefix:     "outbound",
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ads, RouteConfigName: "80"}},
		HttpFilters: []*hcmv3.HttpFilter{{
			Name:       "envoy.filters.http.router",
			ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: router},
		}},
	})
	if err != nil {
		return err
	}
	filter := &listenerv3.Filter{
		Name:       "envoy.filters.network.http_connection_manager",
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: manager},
	}
	resources[resource.RouteType] = append(resources[resource.RouteType], &routev3.RouteConfiguration{
		Name: "80", VirtualHosts: hosts, IgnorePortInHostMatching: true,
	})
	resources[resource.ListenerType] = append(resources[resource.ListenerType], &listenerv3.Listener{
		Name:         "0.0.0.0_80",
		Address:      address("0.0.0.0", 80),
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{filter}}},
	})
	return nil
}
