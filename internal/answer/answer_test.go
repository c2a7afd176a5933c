package answer_test

import (
	"strings"
	"testing"
	"time"

	"banger/internal/answer"
)

func TestAgo(t *testing.T) {
	now := time.Date(2026, 4, 29, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		d    time.Duration
		want string
	}{
		{-time.Hour, "0s ago"}, {0, "0s ago"}, {59 * time.Second, "59s ago"}, {time.Minute, "1m ago"}, {time.Hour - 1, "59m ago"},
		{time.Hour, "1h ago"}, {48*time.Hour - 1, "47h ago"}, {48 * time.Hour, "2d ago"}, {1000 * time.Hour, "41d ago"},
	} {
		if got := answer.Ago(now, now.Add(-c.d)); got != c.want {
			t.Errorf("answer.Ago(%v) = %q, want %q", c.d, got, c.want)
		}
	}
	if got := answer.Ago(now, time.Time{}); got != "-" {
		t.Errorf("answer.Ago(never) = %q, want -", got)
	}
}

func TestTable(t *testing.T) {
	var b strings.Builder
	answer.Table(&b, "NAME STATE", [][]string{{"a", "running"}, {"longer-name", "-"}})
	want := "NAME         STATE\na            running\nlonger-name  -\n"
	if b.String() != want {
		t.Errorf("answer.Table() = %q, want %q", b.String(), want)
	}
}
