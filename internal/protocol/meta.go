package protocol

import (
	"bytes"
	"encoding/json"
	"slices"
)

// MaxPatchBytes bounds what may be said about a meta at a time: all of it can be taken away, and as much put in its place.
const MaxPatchBytes = 4 * MaxMetaBytes

// MergeMeta applies a JSON merge patch (RFC 7396) to the meta of a connection, "" being none, and returns what comes of it, without
// spaces. That is held to what the meta of a register is held to, and in the patch no name may be twice.
func MergeMeta(meta string, patch []byte) (string, error) {
	if len(patch) > MaxPatchBytes {
		return "", &ReplyError{Code: CodeTooLarge, Message: "meta: a patch of more than 4096 bytes", Limit: LimitMeta}
	}
	merged, fault := mergePatch(nil, []byte(meta), patch, MaxDepth-1)
	if fault != "" {
		return "", &ReplyError{Code: CodeBadRequest, Message: "meta: " + fault}
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, merged); err != nil {
		return "", &ReplyError{Code: CodeBadRequest, Message: "meta: " + faultSyntax}
	}
	if compact.Len() > MaxMetaBytes {
		return "", &ReplyError{Code: CodeTooLarge, Message: "meta: it would have " + faultMetaSize, Limit: LimitMeta}
	}
	return compact.String(), nil
}

// member is one name of an object and its value as written.
type member struct {
	name  string
	value []byte
}

// faultUnmergeable: a token may hold what no frame may, half a surrogate pair say.
const faultUnmergeable = "what is there now can't be merged with"

// mergePatch appends what RFC 7396 section 2 makes of target and patch, an object. Values keep the bytes they are written with, so no
// number loses its digits.
func mergePatch(dst, target, patch []byte, depth int) ([]byte, string) {
	var members []member
	at := func(name string) int { return slices.IndexFunc(members, func(m member) bool { return m.name == name }) }
	put := func(name string, value []byte) {
		if i := at(name); i >= 0 {
			members[i].value = value // of names that are twice the last one counts, as everywhere
		} else {
			members = append(members, member{name, value})
		}
	}
	if len(target) > 0 && target[0] == '{' {
		if ScanObject(target, MaxDepth, func(name string, value []byte) string { put(name, value); return "" }) != "" {
			return nil, faultUnmergeable
		}
	}
	seen := make(map[string]bool)
	fault := ScanObject(patch, depth, func(name string, value []byte) string {
		if seen[name] {
			return "a name is " + faultTwice
		}
		seen[name] = true
		i := at(name)
		switch {
		case string(value) == "null":
			if i >= 0 {
				members = slices.Delete(members, i, i+1)
			}
		case value[0] == '{':
			var before []byte
			if i >= 0 {
				before = members[i].value
			}
			inner, fault := mergePatch(nil, before, value, depth-1)
			if fault != "" {
				return fault
			}
			put(name, inner)
		default:
			put(name, value)
		}
		return ""
	})
	if fault != "" {
		return nil, fault
	}
	dst = append(dst, '{')
	for i, m := range members {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(append(appendString(dst, m.name), ':'), m.value...)
	}
	return append(dst, '}'), ""
}
