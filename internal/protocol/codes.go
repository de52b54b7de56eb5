package protocol

// ErrorCode says why a frame was refused. The connection lives on.
type ErrorCode string

// The error codes. What each means is in Errors.
const (
	CodeBadRequest        ErrorCode = "bad_request"
	CodeUnknownType       ErrorCode = "unknown_type"
	CodeNotRegistered     ErrorCode = "not_registered"
	CodeAlreadyRegistered ErrorCode = "already_registered"
	CodeUnauthorized      ErrorCode = "unauthorized"
	CodeForbidden         ErrorCode = "forbidden"
	CodeNotJoined         ErrorCode = "not_joined"
	CodeConflict          ErrorCode = "conflict"
	CodeTooLarge          ErrorCode = "too_large"
	CodeLimited           ErrorCode = "limited"
	CodeOverloaded        ErrorCode = "overloaded"
	CodeUnavailable       ErrorCode = "unavailable"
	CodeUnknown           ErrorCode = "unknown"
	CodeInternal          ErrorCode = "internal"
)

// ErrorInfo is one row of the table of error codes.
type ErrorInfo struct {
	Code    ErrorCode
	Retry   bool // the same frame, sent again later, may succeed
	Meaning string
}

// Errors is the table of error codes: docs and client constants are generated from it.
var Errors = [...]ErrorInfo{
	{CodeBadRequest, false, "The frame is not what this page describes; the message names the field."},
	{CodeUnknownType, false, "No such type, or this gateway does not serve it."},
	{CodeNotRegistered, false, "Only `register` is possible on this connection as yet."},
	{CodeAlreadyRegistered, false, "This connection has registered before; who it is can't change."},
	{CodeUnauthorized, false, "The token is missing, wrong or expired."},
	{CodeForbidden, false, "The token is good, but does not allow this."},
	{CodeNotJoined, false, "This connection has not joined the room."},
	{CodeConflict, false, "A message with this `id` and another content exists: the new one needs an id of its own. Of a `register`: another connection has the place of this `deviceClass`."},
	{CodeTooLarge, false, "A part of the frame is over the size named in `limit`."},
	{CodeLimited, true, "Too much: the limit named in `limit` allows it again after `retryAfterMs`. Certainly not stored."},
	{CodeOverloaded, true, "The gateway has too much to do; nothing was stored. Again after `retryAfterMs`."},
	{CodeUnavailable, true, "What the gateway needs is away; the message was certainly not stored. Again after `retryAfterMs`."},
	{CodeUnknown, true, "The outcome is not known: repeat with the same `id`, which never stores twice."},
	{CodeInternal, true, "A mistake of the gateway."},
}

// ReplyError is a failure that the client is told in an error frame, and survives.
type ReplyError struct {
	ID           string // of the frame that was refused; empty: it had none that could be read
	Code         ErrorCode
	Message      string   // for people: a constant, or the name of a field and a constant; never what the client sent
	Limit        string   // which limit, for too_large and limited
	Rooms        []RoomID // which rooms it is about; none: the whole frame
	RetryAfterMs int64    // milliseconds; 0: not said
}

func (e *ReplyError) Error() string {
	if e.Message == "" {
		return string(e.Code)
	}
	return string(e.Code) + ": " + e.Message
}

// CloseCode says why a connection ended: a status code of RFC 6455 section 7.4, or one of ours from 4000 on.
type CloseCode uint16

// The close codes. What each means is in Closes.
const (
	CloseNormal           CloseCode = 1000
	CloseGoingAway        CloseCode = 1001
	CloseProtocolError    CloseCode = 1002
	CloseUnsupportedData  CloseCode = 1003
	CloseAbnormal         CloseCode = 1006
	CloseInvalidPayload   CloseCode = 1007
	ClosePolicyViolation  CloseCode = 1008
	CloseTooBig           CloseCode = 1009
	CloseInternalError    CloseCode = 1011
	CloseServiceRestart   CloseCode = 1012
	CloseTryAgainLater    CloseCode = 1013
	CloseDraining         CloseCode = 4000
	CloseSlowConsumer     CloseCode = 4001
	CloseHeartbeatTimeout CloseCode = 4002
	ClosePingTimeout      CloseCode = 4003
	CloseSuperseded       CloseCode = 4004
	CloseRebalance        CloseCode = 4005
	CloseTokenExpired     CloseCode = 4006
	CloseMaxAge           CloseCode = 4007
	CloseRegisterTimeout  CloseCode = 4500
	CloseUnauthorized     CloseCode = 4501
	CloseReplaced         CloseCode = 4502
	CloseKicked           CloseCode = 4503
	CloseRevoked          CloseCode = 4504
	CloseTooManyErrors    CloseCode = 4505
)

// CloseInfo is one row of the table of close codes.
type CloseInfo struct {
	Code      CloseCode
	Name      string
	Reconnect bool // the client should come back, with full jitter
	Meaning   string
}

// Closes is the table of close codes, ascending: docs and client constants are generated from it.
var Closes = [...]CloseInfo{
	{CloseNormal, "normal", false, "The side that closed was done."},
	{CloseGoingAway, "going_away", true, "The other side is leaving."},
	{CloseProtocolError, "protocol_error", false, "What came was not WebSocket."},
	{CloseUnsupportedData, "unsupported_data", false, "A binary frame; only text is spoken here."},
	{CloseAbnormal, "abnormal", true, "The connection broke without a close frame, or never opened: the only sign a browser gives of a refused upgrade. Never sent."},
	{CloseInvalidPayload, "invalid_payload", false, "A text frame that was not UTF-8."},
	{ClosePolicyViolation, "policy_violation", false, "Refused by a rule that has no code of its own."},
	{CloseTooBig, "too_big", false, "A frame over `maxFrameBytes`."},
	{CloseInternalError, "internal_error", true, "A mistake of the gateway."},
	{CloseServiceRestart, "service_restart", true, "The service restarts."},
	{CloseTryAgainLater, "try_again_later", true, "Too many connections for now."},
	{CloseDraining, "draining", true, "This gateway is shutting down; the others carry on."},
	{CloseSlowConsumer, "slow_consumer", true, "The client did not read what was sent to it."},
	{CloseHeartbeatTimeout, "heartbeat_timeout", true, "No frame for 90 s, or a message that was begun and not completed in 10 s."},
	{ClosePingTimeout, "ping_timeout", true, "Not a byte came after a ping."},
	{CloseSuperseded, "superseded", true, "The cluster had given this connection up, after a pause of its gateway, say."},
	{CloseRebalance, "rebalance", true, "Moved to spread connections evenly."},
	{CloseTokenExpired, "token_expired", true, "The token ran out: come back with a new one."},
	{CloseMaxAge, "max_age", true, "Connections live only so long here."},
	{CloseRegisterTimeout, "register_timeout", false, "No `register` within 10 s."},
	{CloseUnauthorized, "unauthorized", false, "`register` was refused."},
	{CloseReplaced, "replaced", false, "The same device, or one connection too many, registered elsewhere. Coming back would only push that one out."},
	{CloseKicked, "kicked", false, "Ended by an operator."},
	{CloseRevoked, "revoked", false, "The token was revoked."},
	{CloseTooManyErrors, "too_many_errors", false, "One bad frame after another."},
}

// Name is what logs, metrics and the closing frame call the code; codes outside the table, which only a peer can send, share "other".
func (c CloseCode) Name() string {
	if info := c.info(); info != nil {
		return info.Name
	}
	return "other"
}

// Reconnect reports whether a client should come back after this code. For codes outside the table the range decides, so that a
// client needs no table to know.
func (c CloseCode) Reconnect() bool {
	if info := c.info(); info != nil {
		return info.Reconnect
	}
	return 4000 <= c && c <= 4499
}

func (c CloseCode) info() *CloseInfo {
	for i := range Closes {
		if Closes[i].Code == c {
			return &Closes[i]
		}
	}
	return nil
}
