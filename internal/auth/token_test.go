package auth

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

var hs = object{"alg": "HS256", "typ": "JWT"}

func TestATokenOfEachAlgorithmIsGood(t *testing.T) {
	k := keyring()
	v := newVerifier(t, settings(t))
	for alg, key := range map[string]any{"HS256": k.secret, "RS256": k.rsa, "ES256": k.ec, "EdDSA": k.ed} {
		t.Run(alg, func(t *testing.T) {
			for _, header := range []object{{"alg": alg}, {"alg": alg, "typ": "JWT"}, {"alg": alg, "typ": "at+jwt", "kid": "whatever", "x5t": "x"}} {
				id, err := v.Verify(context.Background(), []byte(mint(header, but(object{"jti": "t-1"}), key)))
				if err != nil {
					t.Fatalf("%v: %v", header, err)
				}
				if id.User != "alice" || id.TokenID != "t-1" || id.IssuedAt != now.Unix()-10 || id.Expires != now.Unix()+600 || id.Meta != "" {
					t.Errorf("identity %+v", id)
				}
			}
		})
	}
	if s := v.Stats(); s.Accepted != 12 || s.Keys != 4 {
		t.Errorf("counted %+v", s)
	}
}

// Everything here is wrong with the token itself or its signature. None of it may be good whatever the claims say.
func TestABadTokenIsRefused(t *testing.T) {
	k := keyring()
	v := newVerifier(t, settings(t))
	token := mint(hs, good(), k.secret)
	parts := strings.Split(token, ".")
	head, body, mac := parts[0], parts[1], parts[2]
	rsaPEM, rsaDER := publicPEM(k.rsa.Public()), must(x509.MarshalPKIXPublicKey(k.rsa.Public()))
	other := []byte("another secret, and as long as it has to be")
	embedded := fmt.Sprintf(`{"alg":"EdDSA","jwk":{"kty":"OKP","crv":"Ed25519","x":"%s"}}`, b64(k.ed[32:]))
	cases := map[string]struct {
		token string
		want  Reason
	}{
		"empty":                      {"", ReasonMalformed},
		"a word":                     {"token", ReasonMalformed},
		"two parts":                  {head + "." + body, ReasonMalformed},
		"four parts":                 {token + ".x", ReasonMalformed},
		"five parts, encrypted":      {head + "." + body + "." + mac + "." + mac + "." + mac, ReasonMalformed},
		"dots":                       {strings.Repeat(".", 100), ReasonMalformed},
		"a megabyte of dots":         {strings.Repeat(".", 1<<20), ReasonTooLarge},
		"a byte too long":            {token + strings.Repeat("A", MaxTokenBytes+1-len(token)), ReasonTooLarge},
		"a long header":              {mint(object{"alg": "HS256", "x": strings.Repeat("x", 2000)}, good(), k.secret), ReasonTooLarge},
		"JSON serialization":         {fmt.Sprintf(`{"payload":"%s","protected":"%s","signature":"%s"}`, body, head, mac), ReasonMalformed},
		"cut off":                    {token[:len(token)-11], ReasonSignature},
		"cut in its last character":  {token[:len(token)-1], ReasonMalformed},
		"no signature":               {head + "." + body + ".", ReasonSignature},
		"no claims":                  {head + ".." + mac, ReasonMalformed},
		"a line break":               {head + "." + body[:9] + "\n" + body[9:] + "." + mac, ReasonMalformed},
		"a line break at its end":    {token + "\n", ReasonMalformed},
		"a space in front":           {" " + token, ReasonMalformed},
		"padded":                     {head + "=." + body + "." + mac, ReasonMalformed},
		"another alphabet":           {head + "." + body + "." + strings.Repeat("+/", 20), ReasonMalformed},
		"bits behind the last byte":  {token[:len(token)-1] + next(token[len(token)-1]), ReasonMalformed},
		"NUL":                        {token + "\x00", ReasonMalformed},
		"not UTF-8":                  {token + "\xff", ReasonMalformed},
		"header is no JSON":          {mint("nothing", good(), k.secret), ReasonMalformed},
		"header is a list":           {mint(`["HS256"]`, good(), k.secret), ReasonMalformed},
		"header and more":            {mint(`{"alg":"HS256"}{}`, good(), k.secret), ReasonMalformed},
		"alg twice":                  {mint(`{"alg":"HS256","alg":"HS256"}`, good(), k.secret), ReasonMalformed},
		"alg is a number":            {mint(`{"alg":256}`, good(), k.secret), ReasonMalformed},
		"alg missing":                {mint(object{"typ": "JWT"}, good(), k.secret), ReasonAlgorithm},
		"ALG":                        {mint(`{"ALG":"HS256"}`, good(), k.secret), ReasonAlgorithm},
		"alg none":                   {mint(object{"alg": "none"}, good(), nil), ReasonAlgorithm},
		"alg NONE":                   {mint(object{"alg": "NoNe"}, good(), nil), ReasonAlgorithm},
		"alg none, signed":           {mint(object{"alg": "none"}, good(), k.secret), ReasonAlgorithm},
		"alg hs256":                  {mint(object{"alg": "hs256"}, good(), k.secret), ReasonAlgorithm},
		"alg HS512":                  {mint(object{"alg": "HS512"}, good(), k.secret), ReasonAlgorithm},
		"alg PS256":                  {mint(object{"alg": "PS256"}, good(), k.rsa), ReasonAlgorithm},
		"alg RS512":                  {mint(object{"alg": "RS512"}, good(), k.rsa), ReasonAlgorithm},
		"alg ES384":                  {mint(object{"alg": "ES384"}, good(), k.ec), ReasonAlgorithm},
		"HS256 with the RSA PEM":     {mint(hs, good(), rsaPEM), ReasonSignature},
		"HS256 with the RSA DER":     {mint(hs, good(), rsaDER), ReasonSignature},
		"HS256 with the modulus":     {mint(hs, good(), k.rsa.N.Bytes()), ReasonSignature},
		"HS256 with the Ed25519 key": {mint(hs, good(), []byte(k.ed[32:])), ReasonSignature},
		"HS256 with an empty secret": {mint(hs, good(), []byte{}), ReasonSignature},
		"HS256 with another secret":  {mint(hs, good(), other), ReasonSignature},
		"RS256, signed by HMAC":      {mint(object{"alg": "RS256"}, good(), k.secret), ReasonSignature},
		"ES256, signed by RSA":       {mint(object{"alg": "ES256"}, good(), k.rsa), ReasonSignature},
		"EdDSA, signed by ECDSA":     {mint(object{"alg": "EdDSA"}, good(), k.ec), ReasonSignature},
		"ES256 of zeros":             {head256("ES256") + "." + body + "." + b64(make([]byte, 64)), ReasonSignature},
		"ES256 as ASN.1":             {head256("ES256") + "." + body + "." + b64(append([]byte{0x30, 70}, make([]byte, 70)...)), ReasonSignature},
		"claims exchanged":           {head + "." + b64(must(json.Marshal(but(object{"sub": "root"})))) + "." + mac, ReasonSignature},
		"header exchanged":           {head256("HS256") + "." + body + "." + mac, ReasonSignature},
		"brings its key":             {mint(embedded, good(), k.ed), ReasonMalformed},
		"says where its key is":      {mint(object{"alg": "RS256", "jku": "http://127.0.0.1/"}, good(), k.rsa), ReasonMalformed},
		"brings a chain":             {mint(object{"alg": "RS256", "x5c": []string{"AA"}}, good(), k.rsa), ReasonMalformed},
		"names a chain":              {mint(object{"alg": "RS256", "x5u": "http://127.0.0.1/"}, good(), k.rsa), ReasonMalformed},
		"critical extension":         {mint(object{"alg": "HS256", "crit": []string{"b64"}, "b64": false}, good(), k.secret), ReasonMalformed},
		"critical but null":          {mint(`{"alg":"HS256","crit":null}`, good(), k.secret), ReasonMalformed},
		"unencoded payload":          {mint(object{"alg": "HS256", "b64": false}, good(), k.secret), ReasonMalformed},
		"compressed":                 {mint(object{"alg": "HS256", "zip": "DEF"}, good(), k.secret), ReasonMalformed},
		"for another purpose":        {mint(object{"alg": "HS256", "typ": "logout+jwt"}, good(), k.secret), ReasonMalformed},
		"kid is a number":            {mint(`{"alg":"HS256","kid":1}`, good(), k.secret), ReasonMalformed},
		"kid is endless":             {mint(object{"alg": "HS256", "kid": strings.Repeat("k", 300)}, good(), k.secret), ReasonMalformed},
		"kid is a path, wrong key":   {mint(object{"alg": "HS256", "kid": "../../../../dev/null"}, good(), []byte{}), ReasonSignature},
		"kid is SQL, wrong key":      {mint(object{"alg": "HS256", "kid": "x' UNION SELECT 'a"}, good(), []byte("a")), ReasonSignature},
		"kid is a URL, wrong key":    {mint(object{"alg": "RS256", "kid": "http://127.0.0.1:1/"}, good(), k.ec), ReasonSignature},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			id, err := v.Verify(context.Background(), []byte(c.token))
			if id != nil {
				t.Errorf("it is %+v", id)
			}
			wantRefused(t, err, c.want)
		})
	}
	if _, err := v.Verify(context.Background(), []byte(token)); err != nil {
		t.Errorf("the token they were made from: %v", err)
	}
	var counted uint64
	for _, n := range v.Stats().Refused {
		counted += n
	}
	if counted != uint64(len(cases)) {
		t.Errorf("%d refusals counted, want %d", counted, len(cases))
	}
}

func head256(alg string) string { return b64(must(json.Marshal(object{"alg": alg}))) }

// next is the character after c in the alphabet, which differs in the lowest bit where c's is 0.
func next(c byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, c)|1])
}

func TestATokenIsHeldAgainstTheRules(t *testing.T) {
	const ok = Reason("")
	at := now.Unix()
	whole := func(c object) any { return but(c) }
	cases := map[string]struct {
		claims any
		want   Reason
	}{
		"good":                       {good(), ok},
		"not JSON":                   {"alice", ReasonClaims},
		"empty":                      {" ", ReasonClaims},
		"a list":                     {`["alice"]`, ReasonClaims},
		"null":                       {`null`, ReasonClaims},
		"two objects":                {`{}{}`, ReasonClaims},
		"not UTF-8":                  {"{\"sub\":\"\xff\"}", ReasonClaims},
		"iss missing":                {whole(object{"iss": nil}), ReasonIssuer},
		"iss empty":                  {whole(object{"iss": ""}), ReasonIssuer},
		"iss of somebody else":       {whole(object{"iss": "https://id.example.org"}), ReasonIssuer},
		"iss with a slash":           {whole(object{"iss": issuer + "/"}), ReasonIssuer},
		"iss in capitals":            {whole(object{"iss": strings.ToUpper(issuer)}), ReasonIssuer},
		"iss is a list":              {whole(object{"iss": []string{issuer}}), ReasonClaims},
		"aud missing":                {whole(object{"aud": nil}), ReasonAudience},
		"aud null":                   {`{"aud":null}`, ReasonClaims},
		"aud empty":                  {whole(object{"aud": ""}), ReasonAudience},
		"aud an empty list":          {whole(object{"aud": []string{}}), ReasonAudience},
		"aud somebody else":          {whole(object{"aud": "shop"}), ReasonAudience},
		"aud begins so":              {whole(object{"aud": "chat3"}), ReasonAudience},
		"aud a number":               {whole(object{"aud": 1}), ReasonClaims},
		"aud one of several":         {whole(object{"aud": []string{"shop", "chat2"}}), ok},
		"exp missing":                {whole(object{"exp": nil}), ReasonClaims},
		"exp null":                   {`{"iss":"` + issuer + `","aud":"chat","sub":"alice","iat":1800000000,"exp":null}`, ReasonClaims},
		"exp now":                    {whole(object{"exp": at}), ReasonExpired},
		"exp in a second":            {whole(object{"exp": at + 1}), ok},
		"exp past":                   {whole(object{"exp": at - 1}), ReasonExpired},
		"exp past, within leeway":    {whole(object{"exp": at - 5}), ReasonExpired},
		"exp 0":                      {whole(object{"exp": 0}), ReasonExpired},
		"exp negative":               {whole(object{"exp": -at}), ReasonExpired},
		"exp with a fraction":        {whole(object{"exp": float64(at) + 1.5}), ok},
		"exp with a past fraction":   {whole(object{"exp": float64(at) + 0.5}), ReasonExpired},
		"exp is text":                {whole(object{"exp": fmt.Sprint(at + 600)}), ReasonClaims},
		"exp in milliseconds":        {whole(object{"exp": (at + 600) * 1000}), ReasonClaims},
		"exp 1e300":                  {whole(object{"exp": 1e300}), ReasonClaims},
		"exp 1e400":                  {`{"iss":"` + issuer + `","aud":"chat","sub":"alice","iat":1800000000,"exp":1e400}`, ReasonClaims},
		"exp 2^63":                   {whole(object{"exp": uint64(1) << 63}), ReasonClaims},
		"exp true":                   {whole(object{"exp": true}), ReasonClaims},
		"EXP":                        {whole(object{"exp": nil, "EXP": at + 600}), ReasonClaims},
		"lives too long":             {whole(object{"iat": at - 10, "exp": at - 10 + 24*3600 + 1}), ReasonLifetime},
		"lives as long as it may":    {whole(object{"iat": at - 10, "exp": at - 10 + 24*3600}), ok},
		"iat missing":                {whole(object{"iat": nil}), ReasonClaims},
		"iat negative":               {whole(object{"iat": -1}), ReasonClaims},
		"iat ahead":                  {whole(object{"iat": at + 31}), ReasonNotYet},
		"iat ahead, within leeway":   {whole(object{"iat": at + 30}), ok},
		"nbf ahead":                  {whole(object{"nbf": at + 31}), ReasonNotYet},
		"nbf ahead, within leeway":   {whole(object{"nbf": at + 30}), ok},
		"nbf past":                   {whole(object{"nbf": at - 100}), ok},
		"nbf endless":                {whole(object{"nbf": 1e300}), ReasonClaims},
		"sub missing":                {whole(object{"sub": nil}), ReasonSubject},
		"sub empty":                  {whole(object{"sub": ""}), ReasonSubject},
		"sub a number":               {whole(object{"sub": 7}), ReasonClaims},
		"sub in letters of all kind": {whole(object{"sub": "ålice–日本 {x}:*"}), ok},
		"sub 128 bytes":              {whole(object{"sub": strings.Repeat("a", 128)}), ok},
		"sub 129 bytes":              {whole(object{"sub": strings.Repeat("a", 129)}), ReasonSubject},
		"sub with a control":         {whole(object{"sub": "al\x1fice"}), ReasonSubject},
		"sub with NUL":               {whole(object{"sub": "alice\x00"}), ReasonSubject},
		"sub with a C1 control":      {whole(object{"sub": "alice\u0085"}), ReasonSubject},
		"sub with a lone surrogate":  {`{"iss":"` + issuer + `","aud":"chat","sub":"al\ud800","iat":1800000000,"exp":1800000600}`, ReasonSubject},
		"sub twice":                  {`{"iss":"` + issuer + `","aud":"chat","sub":"alice","iat":1800000000,"exp":1800000600,"sub":"root"}`, ReasonClaims},
		"sub twice, escaped":         {`{"iss":"` + issuer + `","aud":"chat","sub":"alice","iat":1800000000,"exp":1800000600,"\u0073ub":"root"}`, ReasonClaims},
		"unknown claim twice":        {`{"iss":"` + issuer + `","aud":"chat","sub":"alice","iat":1800000000,"exp":1800000600,"x":1,"x":2}`, ReasonClaims},
		"jti with a control":         {whole(object{"jti": "a\nb"}), ReasonClaims},
		"jti too long":               {whole(object{"jti": strings.Repeat("j", 129)}), ReasonClaims},
		"meta":                       {whole(object{"meta": object{"plan": "gold"}}), ok},
		"meta a text":                {whole(object{"meta": "gold"}), ReasonClaims},
		"meta a list":                {whole(object{"meta": []int{1}}), ReasonClaims},
		"meta too large":             {whole(object{"meta": object{"x": strings.Repeat("x", 1024)}}), ReasonClaims},
		"rooms a text":               {whole(object{"rooms": "lobby"}), ReasonClaims},
		"rooms with an empty name":   {whole(object{"rooms": []string{""}}), ReasonClaims},
		"rooms with a number":        {whole(object{"rooms": []any{"a", 1}}), ReasonClaims},
		"rooms with null":            {whole(object{"rooms": []any{"a", any(nil)}}), ReasonClaims},
		"watch an object":            {whole(object{"watch": object{}}), ReasonClaims},
		"limits a number":            {whole(object{"limits": 5}), ReasonClaims},
		"limits negative":            {whole(object{"limits": object{"rooms": -1}}), ReasonClaims},
		"limits with a fraction":     {whole(object{"limits": object{"rooms": 1.5}}), ReasonClaims},
		"limits of text":             {whole(object{"limits": object{"rooms": "5"}}), ReasonClaims},
		"limits endless":             {whole(object{"limits": object{"rooms": 1 << 40}}), ReasonClaims},
		"limits unknown":             {whole(object{"limits": object{"frames": 5}}), ReasonClaims},
		"deep":                       {`{"x":` + strings.Repeat("[", 2500) + strings.Repeat("]", 2500) + `}`, ReasonIssuer},
	}
	v := newVerifier(t, settings(t))
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			id, err := v.Verify(context.Background(), []byte(mint(hs, c.claims, keyring().secret)))
			if c.want != ok {
				wantRefused(t, err, c.want)
			} else if err != nil || id.User == "" {
				t.Errorf("refused: %v", err)
			}
		})
	}
}

// An encoder that writes an empty list as null means to allow nothing.
func TestNullIsNotTheSameAsAbsent(t *testing.T) {
	v := newVerifier(t, settings(t))
	for _, name := range []string{"rooms", "watch", "limits", "meta"} {
		claims := strings.TrimSuffix(string(must(json.Marshal(good()))), "}") + `,"` + name + `":null}`
		_, err := v.Verify(context.Background(), []byte(mint(hs, claims, keyring().secret)))
		wantRefused(t, err, ReasonClaims)
	}
}

func TestMetaComesWithoutSpaces(t *testing.T) {
	v := newVerifier(t, settings(t))
	claims := strings.TrimSuffix(string(must(json.Marshal(good()))), "}") + ",\"meta\": {\n \"plan\" : \"a  b\" }}"
	id, err := v.Verify(context.Background(), []byte(mint(hs, claims, keyring().secret)))
	if err != nil || id.Meta != `{"plan":"a  b"}` {
		t.Errorf("meta %+v, %v", id, err)
	}
	_, err = v.Verify(context.Background(), []byte(mint(hs, strings.Replace(claims, `"plan"`, `"x":{"a":1,"a":2},"plan"`, 1), keyring().secret)))
	wantRefused(t, err, ReasonClaims)
}

// A refusal names a field and a constant: what a stranger wrote must not come into the log.
func TestARefusalDoesNotRepeatTheToken(t *testing.T) {
	v := newVerifier(t, settings(t))
	for _, token := range []string{
		mint(object{"alg": "ZZZZ"}, good(), nil), mint(object{"alg": "HS256", "kid": "ZZZZ", "typ": "ZZZZ"}, good(), nil), "ZZZZ.ZZZZ.ZZZZ",
		mint(hs, but(object{"iss": "ZZZZ"}), keyring().secret), mint(hs, but(object{"limits": object{"ZZZZ": 1}}), keyring().secret),
		mint(hs, but(object{"exp": "ZZZZ"}), keyring().secret),
	} {
		if _, err := v.Verify(context.Background(), []byte(token)); err == nil || strings.Contains(err.Error(), "ZZZZ") {
			t.Errorf("error %v", err)
		}
	}
}
