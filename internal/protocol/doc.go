// Package protocol knows every byte on a wire: the JSON frames between a client and a gateway, the envelopes between gateways,
// the ids in both, and the tables of error and close codes.
//
// It owns the vocabulary. A frame from a client is read by [Frame.Decode]; a frame to a client is written by one of the Append
// functions; what may go wrong is an [ErrorCode] (the connection lives) or a [CloseCode] (it ends). docs/protocol.md tells the same
// to whoever writes a client, and the tests of this package hold the two together.
//
// It leaves to others everything that is not bytes. It opens no socket, keeps no state between two frames, reads no clock and
// judges no one: whether a user may do what his frame asks is decided in package handler.
//
// It has no goroutines. A [Frame] belongs to whoever decodes into it; all functions may be called from any goroutine.
//
// It has no locks, and no variables besides constant tables.
//
// # Decoding
//
// Decode makes two passes of different kinds. The scanner (scanner.go) walks the whole object once, proves that it is JSON and
// notes where the value of each known field stands; then the rules of the frame's type (decode.go) read the fields they want
// from those notes. So the order of the fields never matters, an error can carry an id that comes after the mistake, and the fields
// of other types cost nothing.
//
// The scanner is stricter than encoding/json where being lenient would let two readers of the same bytes disagree:
//
//   - field names match in exact case ("TYPE" is an unknown field);
//   - a known field given twice is refused, also when one of the two is spelled with escapes;
//   - invalid UTF-8 and lone surrogates (\ud800) are refused, not replaced;
//   - values nest 64 levels at most.
//
// It is as lenient as encoding/json in one respect: null means absent, for every field but content.
//
// # Content
//
// The content of a message is never parsed into values and written again: it is checked to be exactly one complete JSON value,
// and from then on it is the bytes that came. Because it is complete, it can't close the object it is put into, so
// [AppendMessageHead] can copy it into a frame and no sender can add a field to what a receiver sees.
package protocol
