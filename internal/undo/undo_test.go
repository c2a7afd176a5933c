package undo_test

import (
	"errors"
	"slices"
	"testing"

	"banger/internal/undo"
)

func TestOnErrorReleasesInReverse(t *testing.T) {
	var order []string
	boom, stuck := errors.New("boom"), errors.New("stuck")
	err := func() (err error) {
		var held undo.Stack
		defer held.OnError(&err)
		held.Push(func() error { order = append(order, "first"); return nil })
		held.Push(func() error { order = append(order, "second"); return stuck })
		return boom
	}()
	if want := []string{"second", "first"}; !slices.Equal(order, want) {
		t.Errorf("released %v, want %v", order, want)
	}
	if !errors.Is(err, boom) || !errors.Is(err, stuck) {
		t.Errorf("err = %v, want both %v and %v", err, boom, stuck)
	}
}

func TestOnErrorKeepsWhatSucceeded(t *testing.T) {
	released := false
	err := func() (err error) {
		var held undo.Stack
		defer held.OnError(&err)
		held.Push(func() error { released = true; return nil })
		return nil
	}()
	if err != nil || released {
		t.Errorf("err = %v, released = %v; want nil and false", err, released)
	}
}
