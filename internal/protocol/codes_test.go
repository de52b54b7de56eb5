package protocol

import (
	"errors"
	"testing"
)

func TestEveryErrorCodeHasOneRow(t *testing.T) {
	want := []ErrorCode{
		CodeBadRequest, CodeUnknownType, CodeNotRegistered, CodeAlreadyRegistered, CodeUnauthorized, CodeForbidden, CodeNotJoined,
		CodeConflict, CodeTooLarge, CodeLimited, CodeOverloaded, CodeUnavailable, CodeUnknown, CodeInternal,
	}
	rows := map[ErrorCode]int{}
	for _, info := range Errors {
		rows[info.Code]++
		if info.Meaning == "" {
			t.Errorf("%s has no meaning", info.Code)
		}
	}
	for _, code := range want {
		if rows[code] != 1 {
			t.Errorf("%s has %d rows", code, rows[code])
		}
	}
	if len(Errors) != len(want) {
		t.Errorf("%d rows for %d codes", len(Errors), len(want))
	}
}

// Clients decide by the range when they meet a code that is newer than they are, so the table may not say otherwise.
func TestRangesOfCloseCodesSayWhetherToComeBack(t *testing.T) {
	names := map[string]bool{}
	last := CloseCode(0)
	for _, info := range Closes {
		if info.Code <= last {
			t.Errorf("%d stands after %d", info.Code, last)
		}
		last = info.Code
		if names[info.Name] || info.Name == "" || info.Meaning == "" {
			t.Errorf("%d: name %q is not its own, or it has no meaning", info.Code, info.Name)
		}
		names[info.Name] = true
		if info.Code >= 4000 && info.Reconnect != (info.Code < 4500) {
			t.Errorf("%d %s: reconnect %v is against its range", info.Code, info.Name, info.Reconnect)
		}
	}
	tests := map[CloseCode]struct {
		name      string
		reconnect bool
	}{
		CloseNormal:           {"normal", false},
		CloseGoingAway:        {"going_away", true},
		CloseProtocolError:    {"protocol_error", false},
		CloseAbnormal:         {"abnormal", true},
		ClosePolicyViolation:  {"policy_violation", false},
		CloseInternalError:    {"internal_error", true},
		CloseServiceRestart:   {"service_restart", true},
		CloseTryAgainLater:    {"try_again_later", true},
		CloseDraining:         {"draining", true},
		CloseSlowConsumer:     {"slow_consumer", true},
		CloseRegisterTimeout:  {"register_timeout", false},
		CloseReplaced:         {"replaced", false},
		CloseTooManyErrors:    {"too_many_errors", false},
		0:                     {"other", false},
		1005:                  {"other", false},
		2999:                  {"other", false},
		4321:                  {"other", true},
		4999:                  {"other", false},
		CloseHeartbeatTimeout: {"heartbeat_timeout", true},
	}
	for code, want := range tests {
		if code.Name() != want.name || code.Reconnect() != want.reconnect {
			t.Errorf("%d: %q, reconnect %v", code, code.Name(), code.Reconnect())
		}
	}
}

func TestReplyErrorsReadAsErrors(t *testing.T) {
	var err error = &ReplyError{Code: CodeConflict, ID: "m1"}
	if err.Error() != "conflict" {
		t.Errorf("got %q", err)
	}
	err = &ReplyError{Code: CodeBadRequest, Message: "to: missing"}
	var reply *ReplyError
	if !errors.As(err, &reply) || err.Error() != "bad_request: to: missing" {
		t.Errorf("got %q", err)
	}
}

func TestEveryLimitHasOneRow(t *testing.T) {
	names := map[string]bool{}
	for _, l := range Limits {
		if names[l.Name] || l.Name == "" || l.Meaning == "" || l.Answer == "" || l.Again == "" {
			t.Errorf("the row of %q is not its own, or lacks something", l.Name)
		}
		names[l.Name] = true
	}
}
