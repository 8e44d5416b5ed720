package sites

import "context"

// afterKey is where a handler's context keeps what is to be done after its transaction.
type afterKey struct{}

// After has f called when the transaction of the handler to which ctx was given is committed; never, when it is not.
// What a handler changes in memory belongs there.
func After(ctx context.Context, f func()) {
	if list, ok := ctx.Value(afterKey{}).(*[]func()); ok {
		*list = append(*list, f)
	}
}

// withAfter gives a handler's context, and the list that After fills. The list begins anew when the transaction does.
func withAfter(ctx context.Context) (context.Context, *[]func()) {
	list := new([]func())
	return context.WithValue(ctx, afterKey{}, list), list
}
