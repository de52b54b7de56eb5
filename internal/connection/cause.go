package connection

import (
	"fmt"

	"chatgate/internal/protocol"
)

// Kind is the one enum for why a connection ended.
type Kind uint8

// The kinds of ends. Their String is the metric label and the log field; what each is closed with stands in kinds.
const (
	KindUnknown          Kind = iota // never the kind of an end: the zero value
	KindClientClose                  // the client sent a close frame; Cause.Code is the client's
	KindNetwork                      // the socket failed, or ended without a close frame
	KindSlowConsumer                 // the client does not read what is sent to it
	KindHeartbeatTimeout             // no text frame for SilenceTimeout
	KindPingTimeout                  // not a byte within PongWait of a ping
	KindMessageTimeout               // a message begun, and not complete within MessageTimeout
	KindRegisterTimeout              // no identity within RegisterTimeout
	KindMaxAge                       // older than MaxAge
	KindSuperseded                   // the cluster had given the connection up
	KindRebalance                    // moved to spread connections evenly
	KindTokenExpired                 // the token ran out
	KindReplaced                     // the same device, or one connection too many, came elsewhere
	KindKicked                       // ended by an operator
	KindRevoked                      // the token was revoked
	KindDraining                     // this gateway is stopping
	KindUnauthorized                 // register was refused
	KindTooManyErrors                // one bad frame after another
	KindTooLarge                     // a message over MaxFrameBytes
	KindBadData                      // a binary message, or text that is not UTF-8
	KindProtocol                     // what came was not WebSocket
	KindInternal                     // a mistake of ours

	// Ends that no gateway sees happen: events tell of them, no connection here has them.
	KindGatewayLost // the gateway that held the connection is gone
	KindAbandoned   // the registry had the connection, and no gateway a socket for it
	numKinds
)

// Ending is what an end is to whoever waits for the client at the other side of the system.
type Ending string

// The three endings.
const (
	Goodbye Ending = "goodbye" // meant: the client closed with 1000 or no code, or an operator sent it away
	Drop    Ending = "drop"    // contact was lost: nothing says that the client wanted it, or that it comes back
	Moved   Ending = "moved"   // the client was sent elsewhere, or is there already
)

// kinds says what each kind is called and closed with unless the Cause says otherwise, and which ending it is.
var kinds = [numKinds]struct {
	name   string
	code   protocol.CloseCode
	abrupt bool // the client can't be reached any more: no waiting for it
	ending Ending
}{
	KindUnknown:          {"unknown", protocol.CloseInternalError, false, Drop},
	KindClientClose:      {"client_close", protocol.CloseNormal, false, Goodbye},
	KindNetwork:          {"network", protocol.CloseAbnormal, true, Drop},
	KindSlowConsumer:     {"slow_consumer", protocol.CloseSlowConsumer, true, Drop},
	KindHeartbeatTimeout: {"heartbeat_timeout", protocol.CloseHeartbeatTimeout, false, Drop},
	KindPingTimeout:      {"ping_timeout", protocol.ClosePingTimeout, false, Drop},
	// A client that uploads over a very poor line is the honest case of it, so it may come back.
	KindMessageTimeout:  {"message_timeout", protocol.CloseHeartbeatTimeout, false, Drop},
	KindRegisterTimeout: {"register_timeout", protocol.CloseRegisterTimeout, false, Drop},
	KindMaxAge:          {"max_age", protocol.CloseMaxAge, false, Moved},
	KindSuperseded:      {"superseded", protocol.CloseSuperseded, false, Moved},
	KindRebalance:       {"rebalance", protocol.CloseRebalance, false, Moved},
	KindTokenExpired:    {"token_expired", protocol.CloseTokenExpired, false, Drop},
	KindReplaced:        {"replaced", protocol.CloseReplaced, false, Moved},
	KindKicked:          {"kicked", protocol.CloseKicked, false, Goodbye},
	KindRevoked:         {"revoked", protocol.CloseRevoked, false, Goodbye},
	KindDraining:        {"draining", protocol.CloseDraining, false, Moved},
	KindUnauthorized:    {"unauthorized", protocol.CloseUnauthorized, false, Drop},
	KindTooManyErrors:   {"too_many_errors", protocol.CloseTooManyErrors, false, Drop},
	KindTooLarge:        {"too_large", protocol.CloseTooBig, false, Drop},
	KindBadData:         {"bad_data", protocol.CloseUnsupportedData, false, Drop},
	KindProtocol:        {"protocol", protocol.CloseProtocolError, false, Drop},
	KindInternal:        {"internal", protocol.CloseInternalError, false, Drop},
	KindGatewayLost:     {"gateway_lost", 0, true, Drop},
	KindAbandoned:       {"abandoned", 0, true, Drop},
}

func (k Kind) String() string {
	if k < numKinds {
		return kinds[k].name
	}
	return kinds[KindUnknown].name
}

// Code is what a connection is closed with for this kind, unless its Cause has a code of its own.
func (k Kind) Code() protocol.CloseCode {
	if k < numKinds {
		return kinds[k].code
	}
	return kinds[KindUnknown].code
}

// Kinds lists every kind a connection can end with, for the labels of metrics.
func Kinds() []Kind {
	all := make([]Kind, 0, KindGatewayLost-1)
	for k := KindUnknown + 1; k < KindGatewayLost; k++ {
		all = append(all, k)
	}
	return all
}

// Cause says why a connection ended: the close code, the metric label, the log field and what stop hooks are told.
type Cause struct {
	Kind     Kind
	Code     protocol.CloseCode // 0: the kind's own
	Reason   string             // for people; empty: the name of the code, except for KindClientClose, where it is the client's
	By       string             // who ended it, if somebody did
	At       int64              // and when, ms since 1970; 0: not said
	AfterMs  int64              // told to the client: come back no sooner, ms
	WindowMs int64              // told to the client: and spread over this long, ms
	Err      error              // what the socket said, if that was the cause
}

// Error makes a Cause what context.Cause returns for the connection's context.
func (c Cause) Error() string {
	if c.Err != nil {
		return fmt.Sprintf("connection ended: %s (%d): %v", c.Kind, c.Code, c.Err)
	}
	return fmt.Sprintf("connection ended: %s (%d)", c.Kind, c.Code)
}

func (c Cause) Unwrap() error { return c.Err }

// complete fills in what the caller left to the kind.
func (c Cause) complete() Cause {
	if c.Kind == KindUnknown || c.Kind >= numKinds {
		c.Kind = KindInternal
	}
	if c.Code == 0 {
		c.Code = c.Kind.Code()
	}
	if c.Reason == "" && c.Kind != KindClientClose {
		c.Reason = c.Code.Name()
	}
	return c
}

// Ending says what the end is to whoever waits for the client. A program that calls close() sends 1000, or no code; with
// another one nobody said goodbye: a browser sends 1001 when its tab is closed, by intent or by accident.
func (c Cause) Ending() Ending {
	c = c.complete()
	if c.Kind == KindClientClose && c.Code != protocol.CloseNormal && c.Code != closeNoStatus {
		return Drop
	}
	return kinds[c.Kind].ending
}

func (c *Cause) abrupt() bool { return kinds[c.Kind].abrupt }
