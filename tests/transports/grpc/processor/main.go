// Command processor is an external processor for Envoy that is none of ours: what it is shown and what it says are
// messages of Envoy's own Go module. It prints its address, and serves until its standard input ends.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	pb "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
)

type server struct {
	pb.UnimplementedExternalProcessorServer
}

// exchange is what is known of one stream.
type exchange struct {
	stream pb.ExternalProcessor_ProcessServer
	duplex bool
	// The response's body, which is held until it has ended.
	held bytes.Buffer
}

func (server) Process(stream pb.ExternalProcessor_ProcessServer) error {
	e := &exchange{stream: stream}
	for {
		request, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if config := request.GetProtocolConfig(); config != nil {
			e.duplex = config.GetRequestBodyMode() == filter.ProcessingMode_FULL_DUPLEX_STREAMED ||
				config.GetResponseBodyMode() == filter.ProcessingMode_FULL_DUPLEX_STREAMED
		}
		if err := e.answer(request); err != nil {
			return err
		}
	}
}

func (e *exchange) answer(request *pb.ProcessingRequest) error {
	switch r := request.Request.(type) {
	case *pb.ProcessingRequest_RequestHeaders:
		return e.requestHeaders(r.RequestHeaders)
	case *pb.ProcessingRequest_RequestBody:
		changed := bytes.ToUpper(r.RequestBody.GetBody())
		common := e.body(changed, r.RequestBody.GetEndOfStream())
		return e.stream.Send(&pb.ProcessingResponse{
			Response: &pb.ProcessingResponse_RequestBody{RequestBody: &pb.BodyResponse{Response: common}},
		})
	case *pb.ProcessingRequest_ResponseHeaders:
		return e.stream.Send(&pb.ProcessingResponse{
			Response: &pb.ProcessingResponse_ResponseHeaders{
				ResponseHeaders: &pb.HeadersResponse{Response: common(set("x-seen", status(r.ResponseHeaders)))},
			},
		})
	case *pb.ProcessingRequest_ResponseBody:
		return e.responseBody(r.ResponseBody)
	}
	return fmt.Errorf("%T was not asked for", request.Request)
}

func (e *exchange) requestHeaders(headers *pb.HttpHeaders) error {
	switch path := value(headers.GetHeaders(), ":path"); {
	case strings.HasPrefix(path, "/blocked"):
		return e.stream.Send(&pb.ProcessingResponse{Response: &pb.ProcessingResponse_ImmediateResponse{
			ImmediateResponse: &pb.ImmediateResponse{
				Status:  &typev3.HttpStatus{Code: typev3.StatusCode_Forbidden},
				Headers: set("x-why", "go"),
				Body:    []byte("not here"),
				Details: "blocked_by_path",
			},
		}})
	case strings.HasPrefix(path, "/elsewhere"):
		return e.stream.Send(&pb.ProcessingResponse{Response: &pb.ProcessingResponse_ImmediateResponse{
			ImmediateResponse: &pb.ImmediateResponse{
				Status:  &typev3.HttpStatus{Code: typev3.StatusCode_Found},
				Headers: set("location", "https://go.example/"),
			},
		}})
	case strings.HasPrefix(path, "/in-pieces"):
		return e.reply("in ", "pieces")
	}
	mutation := set("x-processor", "go")
	mutation.RemoveHeaders = []string{"cookie"}
	metadata, err := structpb.NewStruct(map[string]any{"lb": map[string]any{"canary": true}})
	if err != nil {
		return err
	}
	return e.stream.Send(&pb.ProcessingResponse{
		Response: &pb.ProcessingResponse_RequestHeaders{
			RequestHeaders: &pb.HeadersResponse{Response: common(mutation)},
		},
		DynamicMetadata: metadata,
	})
}

// reply answers in the app's place, with a body in pieces.
func (e *exchange) reply(pieces ...string) error {
	head := &pb.HttpHeaders{Headers: &core.HeaderMap{Headers: []*core.HeaderValue{
		{Key: ":status", RawValue: []byte("402")}, {Key: "content-type", RawValue: []byte("text/x-go")},
	}}}
	parts := []*pb.StreamedImmediateResponse{
		{Response: &pb.StreamedImmediateResponse_HeadersResponse{HeadersResponse: head}},
	}
	for i, piece := range pieces {
		body := &pb.StreamedBodyResponse{Body: []byte(piece), EndOfStream: i == len(pieces)-1}
		parts = append(parts, &pb.StreamedImmediateResponse{
			Response: &pb.StreamedImmediateResponse_BodyResponse{BodyResponse: body},
		})
	}
	for _, part := range parts {
		response := &pb.ProcessingResponse_StreamedImmediateResponse{StreamedImmediateResponse: part}
		if err := e.stream.Send(&pb.ProcessingResponse{Response: response}); err != nil {
			return err
		}
	}
	return nil
}

// responseBody holds all of the body back where it can, and leaves out what is secret.
func (e *exchange) responseBody(body *pb.HttpBody) error {
	e.held.Write(body.GetBody())
	last := body.GetEndOfStream()
	if e.duplex && !last {
		return nil
	}
	whole := bytes.ReplaceAll(e.held.Bytes(), []byte("secret"), []byte("[...]"))
	e.held = bytes.Buffer{}
	pieces := [][]byte{whole}
	if e.duplex {
		pieces = [][]byte{whole[:len(whole)/2], whole[len(whole)/2:]}
	}
	for i, piece := range pieces {
		common := e.body(piece, last && i == len(pieces)-1)
		response := &pb.ProcessingResponse_ResponseBody{ResponseBody: &pb.BodyResponse{Response: common}}
		if err := e.stream.Send(&pb.ProcessingResponse{Response: response}); err != nil {
			return err
		}
	}
	return nil
}

func (e *exchange) body(data []byte, last bool) *pb.CommonResponse {
	mutation := &pb.BodyMutation{Mutation: &pb.BodyMutation_Body{Body: data}}
	if e.duplex {
		streamed := &pb.StreamedBodyResponse{Body: data, EndOfStream: last}
		mutation = &pb.BodyMutation{Mutation: &pb.BodyMutation_StreamedResponse{StreamedResponse: streamed}}
	}
	return &pb.CommonResponse{BodyMutation: mutation}
}

func common(mutation *pb.HeaderMutation) *pb.CommonResponse {
	return &pb.CommonResponse{HeaderMutation: mutation}
}

func set(name, value string) *pb.HeaderMutation {
	return &pb.HeaderMutation{SetHeaders: []*core.HeaderValueOption{{
		Header:       &core.HeaderValue{Key: name, RawValue: []byte(value)},
		AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}}}
}

func status(headers *pb.HttpHeaders) string {
	return value(headers.GetHeaders(), ":status")
}

func value(headers *core.HeaderMap, name string) string {
	for _, header := range headers.GetHeaders() {
		if header.GetKey() == name {
			return string(header.GetRawValue())
		}
	}
	return ""
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr())
	processor := grpc.NewServer()
	pb.RegisterExternalProcessorServer(processor, server{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		processor.Stop()
	}()
	if err := processor.Serve(listener); err != nil {
		panic(err)
	}
}
