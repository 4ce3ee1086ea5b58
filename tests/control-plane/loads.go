package main

import (
	"errors"
	"io"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3" // Known to its reader of JSON.
	loadstats "github.com/envoyproxy/go-control-plane/envoy/service/load_stats/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// loads asks every client for a report of all its clusters every 200 ms, and says what it is told.
type loads struct {
	loadstats.UnimplementedLoadReportingServiceServer
	out *out
}

// place is what became of a locality's requests.
type place struct {
	Zone       string             `json:"zone"`
	Issued     uint64             `json:"issued"`
	Successful uint64             `json:"successful"`
	Errors     uint64             `json:"errors"`
	InProgress uint64             `json:"in_progress"`
	Metrics    map[string]float64 `json:"metrics"`
}

// load is a report of one cluster.
type load struct {
	Node     string            `json:"node"`
	Features []string          `json:"features"`
	Cluster  string            `json:"cluster"`
	Service  string            `json:"service"`
	Places   []place           `json:"places"`
	Dropped  uint64            `json:"dropped"`
	ByName   map[string]uint64 `json:"by_name"`
	Seconds  float64           `json:"seconds"`
}

func (s *loads) StreamLoadStats(stream loadstats.LoadReportingService_StreamLoadStatsServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	order := &loadstats.LoadStatsResponse{
		SendAllClusters:       true,
		LoadReportingInterval: durationpb.New(200 * time.Millisecond),
	}
	if err := stream.Send(order); err != nil {
		return err
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, stats := range r.GetClusterStats() {
			report := reported(stats)
			report.Node, report.Features = first.GetNode().GetId(), first.GetNode().GetClientFeatures()
			s.out.say(map[string]load{"load": report})
		}
	}
}

func reported(stats *endpointv3.ClusterStats) load {
	report := load{
		Cluster: stats.GetClusterName(),
		Service: stats.GetClusterServiceName(),
		Dropped: stats.GetTotalDroppedRequests(),
		ByName:  map[string]uint64{},
		Places:  []place{},
		Seconds: stats.GetLoadReportInterval().AsDuration().Seconds(),
	}
	for _, drop := range stats.GetDroppedRequests() {
		report.ByName[drop.GetCategory()] = drop.GetDroppedCount()
	}
	for _, at := range stats.GetUpstreamLocalityStats() {
		metrics := map[string]float64{}
		for _, metric := range at.GetLoadMetricStats() {
			metrics[metric.GetMetricName()] = metric.GetTotalMetricValue()
		}
		if cpu := at.GetCpuUtilization(); cpu != nil {
			metrics["cpu_utilization"] = cpu.GetTotalMetricValue()
		}
		report.Places = append(report.Places, place{
			Zone:       at.GetLocality().GetZone(),
			Issued:     at.GetTotalIssuedRequests(),
			Successful: at.GetTotalSuccessfulRequests(),
			Errors:     at.GetTotalErrorRequests(),
			InProgress: at.GetTotalRequestsInProgress(),
			Metrics:    metrics,
		})
	}
	return report
}
