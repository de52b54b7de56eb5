package protocol

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

func wantFrame(t *testing.T, data string, want Frame) {
	t.Helper()
	var got Frame
	if err := got.Decode([]byte(data)); err != nil {
		t.Fatalf("%s\nrefused: %v", data, err)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Frame{}), cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("%s\n%s", data, diff)
	}
}

func wantRefused(t *testing.T, data string, want ReplyError) {
	t.Helper()
	var f Frame
	err := f.Decode([]byte(data))
	if err == nil {
		t.Fatalf("%.200s\naccepted as %s", data, f.Type)
	}
	if !reflect.DeepEqual(*err, want) {
		t.Fatalf("%.200s\ngot  %+v\nwant %+v", data, *err, want)
	}
}

func TestFramesAreRead(t *testing.T) {
	tests := map[string]struct {
		data string
		want Frame
	}{
		"the fields in any order, with space around": {
			" {\n\"content\" : [1, 2] ,\t\"id\":\"m1\",\"to\":\"bob\"\r\n,\"type\":\"message\"} \n",
			Frame{Type: TypeMessage, ID: []byte("m1"), HasID: true, To: []byte("bob"), Content: []byte("[1, 2]")},
		},
		"unknown fields, even twice": {
			`{"type":"message","to":"bob","x":{"to":1},"x":null,"TYPE":1,"To":[],"content":""}`,
			Frame{Type: TypeMessage, To: []byte("bob"), Content: []byte(`""`)},
		},
		"the fields of other types": {
			`{"type":"heartbeat","id":[],"to":1,"users":{},"limit":-1}`,
			Frame{Type: TypeHeartbeat},
		},
		"an id where none is asked for": {
			`{"type":"heartbeat","id":"h1"}`,
			Frame{Type: TypeHeartbeat, ID: []byte("h1"), HasID: true},
		},
		"escapes in names and values": {
			`{"\u0074ype":"mess\u0061ge","to":"\ud83d\ude42\u00e9\/\\\"","content":"\ud83d\ude42"}`,
			Frame{Type: TypeMessage, To: []byte(`🙂é/\"`), Content: []byte(`"\ud83d\ude42"`)},
		},
		"null content is a value": {
			`{"type":"message","to":"bob","content":null}`,
			Frame{Type: TypeMessage, To: []byte("bob"), Content: []byte("null")},
		},
		"null elsewhere is absent": {
			`{"type":"message","id":null,"to":null,"room":"lobby","content":0,"ephemeral":null,"copy":null}`,
			Frame{Type: TypeMessage, Room: []byte("lobby"), Content: []byte("0")},
		},
		"numbers of any size in content": {
			`{"type":"message","to":"bob","content":[1e400,-0.0,123456789012345678901234567890]}`,
			Frame{Type: TypeMessage, To: []byte("bob"), Content: []byte("[1e400,-0.0,123456789012345678901234567890]")},
		},
		"NUL in content, escaped": {
			`{"type":"message","to":"bob","content":"\u0000"}`,
			Frame{Type: TypeMessage, To: []byte("bob"), Content: []byte(`"\u0000"`)},
		},
		"flags": {
			`{"type":"message","to":"bob","content":1,"ephemeral":true,"copy":false}`,
			Frame{Type: TypeMessage, To: []byte("bob"), Content: []byte("1"), Ephemeral: true},
		},
		"a copy": {
			`{"type":"message","to":"bob","content":1,"copy":true}`,
			Frame{Type: TypeMessage, To: []byte("bob"), Content: []byte("1"), Copy: true},
		},
		"register with a token needs no name": {
			`{"type":"register","token":"a.b.c"}`,
			Frame{Type: TypeRegister, Token: []byte("a.b.c")},
		},
		"resume without epoch: everything kept": {
			`{"type":"register","userId":"alice","resume":{"offset":0}}`,
			Frame{Type: TypeRegister, UserID: []byte("alice"), Resume: Resume{Set: true}},
		},
		"resume with unknown fields": {
			`{"type":"register","userId":"alice","resume":{"epoch":null,"x":[{}],"offset":7}}`,
			Frame{Type: TypeRegister, UserID: []byte("alice"), Resume: Resume{Set: true, Offset: 7}},
		},
		"no rooms": {
			`{"type":"register","userId":"alice","rooms":{}}`,
			Frame{Type: TypeRegister, UserID: []byte("alice")},
		},
		"the highest offset": {
			`{"type":"received","epoch":"e1","offset":18446744073709551615}`,
			Frame{Type: TypeReceived, Epoch: []byte("e1"), Offset: 1<<64 - 1},
		},
		"a limit over the highest is the highest": {
			`{"type":"history","limit":201}`,
			Frame{Type: TypeHistory, Limit: MaxLimit},
		},
		"no limit is the default": {
			`{"type":"history","after":0}`,
			Frame{Type: TypeHistory, HasAfter: true, Limit: DefaultLimit},
		},
		"a user asked for twice is asked for once": {
			`{"type":"presence","users":["bob","al\u0069ce","bob","alice"]}`,
			Frame{Type: TypePresence, Users: [][]byte{[]byte("bob"), []byte("alice")}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) { wantFrame(t, tt.data, tt.want) })
	}
}

func TestBadFramesAreRefusedByName(t *testing.T) {
	bad := func(message string) ReplyError { return ReplyError{Code: CodeBadRequest, Message: message} }
	badWithID := func(id, message string) ReplyError { return ReplyError{ID: id, Code: CodeBadRequest, Message: message} }
	deep := func(levels int) string { return strings.Repeat("[", levels) + strings.Repeat("]", levels) }
	tests := map[string]struct {
		data string
		want ReplyError
	}{
		"nothing":                    {"", bad("frame: unexpected end")},
		"only space":                 {" \n", bad("frame: unexpected end")},
		"null":                       {"null", bad("frame: must be an object")},
		"an array":                   {`[{"type":"heartbeat"}]`, bad("frame: must be an object")},
		"a number":                   {"1", bad("frame: must be an object")},
		"a string":                   {`"heartbeat"`, bad("frame: must be an object")},
		"not JSON":                   {"register alice", bad("frame: must be an object")},
		"truncated":                  {`{"type":"heartbeat"`, bad("frame: unexpected end")},
		"two objects":                {`{"type":"heartbeat"}{"type":"heartbeat"}`, bad("frame: data after the object")},
		"a closing brace too many":   {`{"type":"heartbeat"}}`, bad("frame: data after the object")},
		"byte order mark":            {"\ufeff" + `{"type":"heartbeat"}`, bad("frame: byte order mark")},
		"not UTF-8":                  {"{\"type\":\"heartbeat\",\"x\":\"\xff\"}", bad("frame: invalid UTF-8")},
		"a surrogate as UTF-8":       {"{\"type\":\"heartbeat\",\"x\":\"\xed\xa0\x80\"}", bad("frame: invalid UTF-8")},
		"a comma too many":           {`{"type":"heartbeat",}`, bad("frame: invalid JSON")},
		"a comma missing":            {`{"type":"heartbeat" "x":1}`, bad("frame: invalid JSON")},
		"a colon missing":            {`{"type" "heartbeat"}`, bad("frame: invalid JSON")},
		"a name without quotes":      {`{type:"heartbeat"}`, bad("frame: invalid JSON")},
		"single quotes":              {`{'type':'heartbeat'}`, bad("frame: invalid JSON")},
		"a comment":                  {`{/**/"type":"heartbeat"}`, bad("frame: invalid JSON")},
		"NUL between tokens":         {"{\x00\"type\":\"heartbeat\"}", bad("frame: invalid JSON")},
		"a no-break space":           {"{\u00a0\"type\":\"heartbeat\"}", bad("frame: invalid JSON")},
		"bad JSON in an unknown one": {`{"type":"heartbeat","x":[1,]}`, bad("frame: invalid JSON")},
		"a colon for a comma":        {`{"type":"heartbeat","x":[1:2]}`, bad("frame: invalid JSON")},
		"wrong bracket":              {`{"type":"heartbeat","x":[1}}`, bad("frame: invalid JSON")},
		"a control character":        {"{\"type\":\"heartbeat\",\"x\":\"a\nb\"}", bad("frame: control character in a string")},
		"an unknown escape":          {`{"type":"heartbeat","x":"\x41"}`, bad("frame: invalid escape")},
		"an escape of three digits":  {`{"type":"heartbeat","x":"\u041"}`, bad("frame: invalid escape")},
		"a lone high surrogate":      {`{"type":"heartbeat","x":"\ud83d"}`, bad("frame: lone surrogate")},
		"a lone low surrogate":       {`{"type":"heartbeat","x":"\ude42\ud83d"}`, bad("frame: lone surrogate")},
		"two low surrogates":         {`{"type":"heartbeat","x":"\ude42\ude42"}`, bad("frame: lone surrogate")},
		"two high surrogates":        {`{"type":"heartbeat","x":"\ud83d\ud83d"}`, bad("frame: lone surrogate")},
		"high surrogate, then text":  {`{"type":"heartbeat","x":"\ud83dxude42"}`, bad("frame: lone surrogate")},
		"high surrogate, then \\n":   {`{"type":"heartbeat","x":"\ud83d\nxxxx"}`, bad("frame: lone surrogate")},
		"a lone surrogate as a name": {`{"type":"heartbeat","\ud83d":1}`, bad("frame: lone surrogate")},
		"a leading zero":             {`{"type":"heartbeat","x":01}`, bad("frame: invalid JSON")},
		"a leading plus":             {`{"type":"heartbeat","x":+1}`, bad("frame: invalid JSON")},
		"a point without digits":     {`{"type":"heartbeat","x":1.}`, bad("frame: invalid number")},
		"a minus alone":              {`{"type":"heartbeat","x":-}`, bad("frame: invalid number")},
		"an exponent without digits": {`{"type":"heartbeat","x":1e+}`, bad("frame: invalid number")},
		"infinity":                   {`{"type":"heartbeat","x":Infinity}`, bad("frame: invalid JSON")},
		"a word cut":                 {`{"type":"heartbeat","x":tru}`, bad("frame: invalid JSON")},
		"100,000 levels":             {`{"type":"heartbeat","x":` + strings.Repeat("[", 100_000), bad("frame: nested deeper than 64 levels")},
		"100,000 levels of objects":  {`{"type":"heartbeat","x":` + strings.Repeat(`{"x":`, 100_000), bad("frame: nested deeper than 64 levels")},
		"65 levels, unknown field":   {`{"type":"heartbeat","x":` + deep(65) + `}`, bad("frame: nested deeper than 64 levels")},
		"65 levels in content":       {`{"type":"message","to":"bob","content":` + deep(65) + `}`, bad("content: nested deeper than 64 levels")},

		"no type":             {`{}`, bad("type: missing")},
		"type in other case":  {`{"TYPE":"heartbeat"}`, bad("type: missing")},
		"type null":           {`{"type":null}`, bad("type: missing")},
		"type a number":       {`{"type":1}`, bad("type: must be a string")},
		"type empty":          {`{"type":""}`, bad("type: empty")},
		"type twice":          {`{"type":"heartbeat","type":"heartbeat"}`, bad("type: given twice")},
		"twice by an escape":  {`{"type":"heartbeat","\u0074ype":"message"}`, bad("type: given twice")},
		"twice, of a null":    {`{"type":"message","to":null,"to":"bob","content":1}`, bad("to: given twice")},
		"twice, another's":    {`{"type":"heartbeat","limit":1,"limit":1}`, bad("limit: given twice")},
		"unknown type":        {`{"type":"shout","id":"m1"}`, ReplyError{ID: "m1", Code: CodeUnknownType, Message: "type: unknown"}},
		"type in upper case":  {`{"type":"HEARTBEAT"}`, ReplyError{Code: CodeUnknownType, Message: "type: unknown"}},
		"the name of no type": {`{"type":"unknown"}`, ReplyError{Code: CodeUnknownType, Message: "type: unknown"}},

		"id after the mistake":        {`{"type":"message","to":[],"content":1,"id":"m1"}`, badWithID("m1", "to: must be a string")},
		"id with escapes":             {`{"type":"message","content":1,"id":"\u006d1"}`, badWithID("m1", "to: exactly one of to and room")},
		"id before broken JSON":       {`{"id":"m1","type":"message","content":[}`, badWithID("m1", "content: invalid JSON")},
		"id after broken JSON":        {`{"type":"message","content":[},"id":"m1"}`, bad("content: invalid JSON")},
		"id twice":                    {`{"type":"message","id":"m1","id":"m2","to":"bob","content":1}`, bad("id: given twice")},
		"id beside another one twice": {`{"type":"message","to":"m1","to":"m2","id":"m1","content":1}`, badWithID("m1", "to: given twice")},
		"id of a type without":        {`{"type":"register","id":"r1","userId":""}`, badWithID("r1", "userId: empty")},
		"id a number":                 {`{"type":"message","id":1,"to":"bob","content":1}`, bad("id: must be a string")},
		"id empty":                    {`{"type":"message","id":"","to":"bob","content":1}`, bad("id: empty")},
		"id too long":                 {`{"type":"message","id":"` + strings.Repeat("x", 65) + `","to":"bob","content":1}`, bad("id: too long")},
		"id with a newline":           {`{"type":"message","id":"a\nb","to":"bob","content":1}`, bad("id: control character")},

		"message to nobody":         {`{"type":"message","content":1}`, bad("to: exactly one of to and room")},
		"message to user and room":  {`{"type":"message","to":"bob","room":"lobby","content":1}`, bad("to: exactly one of to and room")},
		"message without content":   {`{"type":"message","to":"bob"}`, bad("content: missing")},
		"to empty":                  {`{"type":"message","to":"","content":1}`, bad("to: empty")},
		"to of 10 KB":               {`{"type":"message","to":"` + strings.Repeat("x", 10<<10) + `","content":1}`, bad("to: too long")},
		"to with NUL":               {`{"type":"message","to":"a\u0000","content":1}`, bad("to: control character")},
		"to with C1":                {`{"type":"message","to":"a\u0085","content":1}`, bad("to: control character")},
		"room an object":            {`{"type":"message","room":{},"content":1}`, bad("room: must be a string")},
		"content cut":               {`{"type":"message","to":"bob","content":{"a":`, bad("content: unexpected end")},
		"content nothing":           {`{"type":"message","to":"bob","content":}`, bad("content: invalid JSON")},
		"content two values":        {`{"type":"message","to":"bob","content":1 2}`, bad("frame: invalid JSON")},
		"content twice":             {`{"type":"message","to":"bob","content":1,"content":1}`, bad("content: given twice")},
		"ephemeral a string":        {`{"type":"message","to":"bob","content":1,"ephemeral":"true"}`, bad("ephemeral: must be true or false")},
		"copy a number":             {`{"type":"message","to":"bob","content":1,"copy":1}`, bad("copy: must be true or false")},
		"copy of an ephemeral":      {`{"type":"message","to":"bob","content":1,"copy":true,"ephemeral":true}`, bad("copy: not together with ephemeral")},
		"userId a number":           {`{"type":"register","userId":7}`, bad("userId: must be a string")},
		"userId empty":              {`{"type":"register","userId":"","token":"t"}`, bad("userId: empty")},
		"token empty":               {`{"type":"register","userId":"alice","token":""}`, bad("token: empty")},
		"token an array":            {`{"type":"register","userId":"alice","token":[]}`, bad("token: must be a string")},
		"deviceId too long":         {`{"type":"register","userId":"alice","deviceId":"` + strings.Repeat("x", 129) + `"}`, bad("deviceId: too long")},
		"meta a string":             {`{"type":"register","userId":"alice","meta":"x"}`, bad("meta: must be an object")},
		"meta too large":            {`{"type":"register","userId":"alice","meta":{"x":"` + strings.Repeat("x", 1017) + `"}}`, ReplyError{Code: CodeTooLarge, Message: "meta: more than 1024 bytes", Limit: "meta"}},
		"resume a number":           {`{"type":"register","userId":"alice","resume":3}`, bad("resume: must be an object")},
		"resume without offset":     {`{"type":"register","userId":"alice","resume":{"epoch":"e"}}`, bad("resume.offset: missing")},
		"resume with a float":       {`{"type":"register","userId":"alice","resume":{"offset":1.0}}`, bad("resume.offset: " + faultNotOffset)},
		"resume with an exponent":   {`{"type":"register","userId":"alice","resume":{"offset":1e3}}`, bad("resume.offset: " + faultNotOffset)},
		"resume below zero":         {`{"type":"register","userId":"alice","resume":{"offset":-1}}`, bad("resume.offset: " + faultNotOffset)},
		"resume at minus zero":      {`{"type":"register","userId":"alice","resume":{"offset":-0}}`, bad("resume.offset: " + faultNotOffset)},
		"resume at 2^64":            {`{"type":"register","userId":"alice","resume":{"offset":18446744073709551616}}`, bad("resume.offset: " + faultNotOffset)},
		"resume at 1e400":           {`{"type":"register","userId":"alice","resume":{"offset":1e400}}`, bad("resume.offset: " + faultNotOffset)},
		"resume at a string":        {`{"type":"register","userId":"alice","resume":{"offset":"1"}}`, bad("resume.offset: " + faultNotOffset)},
		"resume with a bad epoch":   {`{"type":"register","userId":"alice","resume":{"offset":1,"epoch":1}}`, bad("resume.epoch: must be a string")},
		"resume with two offsets":   {`{"type":"register","userId":"alice","resume":{"offset":1,"offset":1}}`, bad("resume.offset: given twice")},
		"resume with two epochs":    {`{"type":"register","userId":"alice","resume":{"offset":1,"epoch":"a","\u0065poch":"b"}}`, bad("resume.epoch: given twice")},
		"rooms an array":            {`{"type":"register","userId":"alice","rooms":["lobby"]}`, bad("rooms: must be an object")},
		"a room without a name":     {`{"type":"register","userId":"alice","rooms":{"":null}}`, bad("rooms: empty")},
		"a room with true":          {`{"type":"register","userId":"alice","rooms":{"lobby":true}}`, bad("rooms: must be an object")},
		"a room without offset":     {`{"type":"register","userId":"alice","rooms":{"lobby":{}}}`, bad("rooms.offset: missing")},
		"a room twice":              {`{"type":"register","userId":"alice","rooms":{"lobby":null,"l\u006fbby":null}}`, bad("rooms: given twice")},
		"received without epoch":    {`{"type":"received","offset":1}`, bad("epoch: missing")},
		"received without offset":   {`{"type":"received","epoch":"e"}`, bad("offset: missing")},
		"join nothing":              {`{"type":"join","id":"j1"}`, badWithID("j1", "room: missing")},
		"leave nothing":             {`{"type":"leave"}`, bad("room: missing")},
		"history on both sides":     {`{"type":"history","after":1,"before":9}`, bad("before: not together with after")},
		"history after a float":     {`{"type":"history","after":1.5}`, bad("after: " + faultNotOffset)},
		"history of none":           {`{"type":"history","limit":0}`, bad("limit: must be an integer from 1")},
		"history of fewer":          {`{"type":"history","limit":-5}`, bad("limit: must be an integer from 1")},
		"history of a string":       {`{"type":"history","limit":"5"}`, bad("limit: must be an integer from 1")},
		"presence of nobody":        {`{"type":"presence","users":[]}`, bad("users: empty")},
		"presence of what":          {`{"type":"presence"}`, bad("users: missing")},
		"presence of a string":      {`{"type":"presence","users":"bob"}`, bad("users: must be an array")},
		"presence of a number":      {`{"type":"presence","users":["bob",1]}`, bad("users: must be a string")},
		"watch an empty name":       {`{"type":"watch","users":[""]}`, bad("users: empty")},
		"unwatch too long a name":   {`{"type":"unwatch","users":["` + strings.Repeat("x", 129) + `"]}`, bad("users: too long")},
		"members of no room":        {`{"type":"members"}`, bad("room: missing")},
		"members after a number":    {`{"type":"members","room":"lobby","after":1}`, bad("after: must be a string")},
		"refresh without token":     {`{"type":"refresh","id":"f1"}`, badWithID("f1", "token: missing")},
		"a token for another field": {`{"type":"refresh","userId":"alice"}`, bad("token: missing")},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) { wantRefused(t, tt.data, tt.want) })
	}
}

func TestSixtyFourLevelsAreEnough(t *testing.T) {
	deep := strings.Repeat("[", 64) + strings.Repeat("]", 64)
	wantFrame(t, `{"type":"message","to":"bob","x":`+deep+`,"content":`+deep+`}`,
		Frame{Type: TypeMessage, To: []byte("bob"), Content: []byte(deep)})
}

func TestMetaOfExactlyItsLimitPasses(t *testing.T) {
	meta := `{"x":"` + strings.Repeat("x", MaxMetaBytes-8) + `"}`
	wantFrame(t, `{"type":"register","userId":"alice","meta":`+meta+`}`,
		Frame{Type: TypeRegister, UserID: []byte("alice"), Meta: []byte(meta)})
}

func TestUsersAreCounted(t *testing.T) {
	frame := func(n int) string {
		var b strings.Builder
		b.WriteString(`{"id":"p1","type":"presence","users":["0"`)
		for i := 1; i < n; i++ {
			b.WriteString(`,"` + strconv.Itoa(i) + `"`)
		}
		return b.String() + "]}"
	}
	var f Frame
	if err := f.Decode([]byte(frame(MaxUsers))); err != nil || len(f.Users) != MaxUsers {
		t.Fatalf("%v, %d users", err, len(f.Users))
	}
	wantRefused(t, frame(MaxUsers+1), ReplyError{ID: "p1", Code: CodeTooLarge, Message: "users: more than 10000", Limit: "users"})

	// The big request does not stay with the Frame.
	if err := f.Decode([]byte(`{"type":"heartbeat"}`)); err != nil || cap(f.Users) > keepEntries {
		t.Fatalf("%v, %d entries kept", err, cap(f.Users))
	}
}

func TestManyRoomsAreToldApart(t *testing.T) {
	rooms := map[string]any{}
	for i := range 100 {
		rooms[fmt.Sprint("room", i)] = nil
	}
	data, err := json.Marshal(map[string]any{"type": "register", "userId": "alice", "rooms": rooms})
	if err != nil {
		t.Fatal(err)
	}
	var f Frame
	if err := f.Decode(data); err != nil || len(f.Rooms) != len(rooms) {
		t.Fatalf("%v, %d rooms", err, len(f.Rooms))
	}
	for _, again := range []string{"room0", "room98"} {
		twice := strings.Replace(string(data), `"room99":null`, `"room99":null,"`+again+`":null`, 1)
		wantRefused(t, twice, ReplyError{Code: CodeBadRequest, Message: "rooms: given twice"})
	}
}

// A reader decodes one frame after another into the same Frame: nothing of one may show in the next.
func TestFramesDoNotLeakIntoTheNext(t *testing.T) {
	frames := map[string]string{
		"full register": `{"type":"register","userId":"\u0061lice","token":"t","deviceId":"d","meta":{},"resume":{"epoch":"e","offset":1},"rooms":{"a":null,"b":{"offset":2}}}`,
		"message":       `{"type":"message","id":"m1","to":"b\u006fb","content":1,"ephemeral":true}`,
		"history":       `{"type":"history","id":"h1","room":"r","epoch":"e","before":3,"limit":4}`,
		"presence":      `{"type":"presence","users":["a","b"]}`,
		"refused":       `{"type":"message","id":"m1","to":"bob","room":"r"}`,
		"broken":        `{"type":"message","id":"m`,
		"heartbeat":     `{"type":"heartbeat"}`,
	}
	opts := cmp.Options{cmpopts.IgnoreUnexported(Frame{}), cmpopts.EquateEmpty()}
	for first, a := range frames {
		for second, b := range frames {
			var fresh, reused Frame
			reused.Decode([]byte(a))
			wantErr, gotErr := fresh.Decode([]byte(b)), reused.Decode([]byte(b))
			if diff := cmp.Diff(wantErr, gotErr); diff != "" {
				t.Errorf("%s after %s: %s", second, first, diff)
			}
			if wantErr == nil {
				if diff := cmp.Diff(fresh, reused, opts); diff != "" {
					t.Errorf("%s after %s: %s", second, first, diff)
				}
			}
		}
	}
}

// What encoding/json writes, however it is indented, Decode reads: any ids, any content.
func TestWhatOthersEncodeIsRead(t *testing.T) {
	ident := func(most int) *rapid.Generator[string] {
		return rapid.StringN(1, -1, most).Filter(func(s string) bool { return ValidID([]byte(s), most) })
	}
	var content func(depth int) *rapid.Generator[any]
	content = func(depth int) *rapid.Generator[any] {
		leaves := []*rapid.Generator[any]{
			rapid.Just[any](nil), rapid.Bool().AsAny(), rapid.Int64().AsAny(), rapid.Float64Range(-1e9, 1e9).AsAny(), rapid.String().AsAny(),
		}
		if depth > 0 {
			leaves = append(leaves,
				rapid.SliceOfN(content(depth-1), 0, 4).AsAny(),
				rapid.MapOfN(rapid.String(), content(depth-1), 0, 4).AsAny())
		}
		return rapid.OneOf(leaves...)
	}
	rapid.Check(t, func(t *rapid.T) {
		raw, err := json.Marshal(content(4).Draw(t, "content"))
		if err != nil {
			t.Fatal(err)
		}
		want := Frame{Type: TypeMessage, HasID: true, Content: raw}
		want.ID = []byte(ident(MaxMessageIDBytes).Draw(t, "id"))
		fields := map[string]any{"type": "message", "id": string(want.ID), "content": json.RawMessage(raw)}
		address := []byte(ident(MaxIDBytes).Draw(t, "address"))
		if rapid.Bool().Draw(t, "room") {
			want.Room, fields["room"] = address, string(address)
		} else {
			want.To, fields["to"] = address, string(address)
		}
		if rapid.Bool().Draw(t, "ephemeral") {
			want.Ephemeral, fields["ephemeral"] = true, true
		}
		data, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		var got Frame
		if err := got.Decode(data); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Frame{}), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("%s\n%s", data, diff)
		}
	})
}
