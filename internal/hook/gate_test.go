//go:build !secondpass

package hook

import "testing"

// What a sink is given shrinks at once, from what was too many, and grows by what it took.
func TestThePortionOfASink(t *testing.T) {
	g := gate{batch: 100}
	want := func(n int) {
		t.Helper()
		if got := g.portion(); got != n {
			t.Fatalf("%d at a time, want %d", got, n)
		}
	}
	want(100)
	g.success(100, true)
	want(100)
	g.tooMany(100)
	g.tooMany(100) // of another group, at the same time
	want(50)
	g.tooMany(7)
	want(3)
	g.tooMany(100) // given before
	want(3)
	g.tooMany(3)
	g.tooMany(2)
	want(1)
	for range goodWhile - 1 {
		g.success(1, false)
	}
	want(1) // two were too many, and it needs most of its time for one
	g.success(1, false)
	want(2)
	g.success(1, true) // there were no more
	want(2)
	g.success(2, false)
	want(3) // two are too many no longer
	g.tooMany(3)
	g.success(1, true)
	g.success(2, true)
	want(3) // who is quick gets more, whatever was before
	rounds := 0
	for ; g.portion() < 100 && rounds < 100; rounds++ {
		g.success(g.portion(), true)
	}
	want(100)
	if rounds > 30 {
		t.Errorf("it took %d deliveries to be trusted again", rounds)
	}
	if g = (gate{batch: 1}); g.portion() != 1 {
		t.Errorf("%d at a time of a batch of one", g.portion())
	}
}
