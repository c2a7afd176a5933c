package daemon

import "net/http"

// access says who may use a route.
type access string

// The kinds of access.
const (
	// owner: the daemon's own uid, and root.
	owner access = "owner"
)

// A route is one line of the API's table; see package api.
type route struct {
	method, path string
	access       access
	// anyVersion lets clients in that speak another protocol, so that they can
	// tell, and end, a daemon that they do not fit.
	anyVersion bool
	serve      func(*Daemon, *call) error
}

// routes is the whole API. What is not in it does not exist.
func routes() []route {
	return []route{
		{http.MethodGet, "/v1/hello", owner, true, (*Daemon).hello},
		{http.MethodPost, "/v1/shutdown", owner, true, (*Daemon).shutdown},
		{http.MethodGet, "/v1/census", owner, false, (*Daemon).census},
		{http.MethodPost, "/v1/reconcile", owner, false, (*Daemon).reconcile},

		{http.MethodGet, "/v1/machines", owner, false, (*Daemon).listMachines},
		{http.MethodPost, "/v1/machines", owner, false, (*Daemon).createMachine},
		{http.MethodGet, "/v1/machines/{ref}", owner, false, (*Daemon).showMachine},
		{http.MethodPatch, "/v1/machines/{ref}", owner, false, (*Daemon).setMachine},
		{http.MethodDelete, "/v1/machines/{ref}", owner, false, (*Daemon).deleteMachine},
		{http.MethodPost, "/v1/machines/{ref}/start", owner, false, (*Daemon).startMachine},
		{http.MethodPost, "/v1/machines/{ref}/stop", owner, false, (*Daemon).stopMachine},
		{http.MethodPost, "/v1/machines/{ref}/kill", owner, false, (*Daemon).killMachine},
		{http.MethodPost, "/v1/machines/{ref}/restart", owner, false, (*Daemon).restartMachine},
		{http.MethodGet, "/v1/machines/{ref}/console", owner, false, (*Daemon).console},

		{http.MethodGet, "/v1/images", owner, false, (*Daemon).listImages},
		{http.MethodGet, "/v1/images/{ref}", owner, false, (*Daemon).showImage},
		{http.MethodPut, "/v1/images/{ref}", owner, false, (*Daemon).importImage},
		{http.MethodDelete, "/v1/images/{ref}", owner, false, (*Daemon).deleteImage},
		{http.MethodPost, "/v1/images/{ref}/pull", owner, false, (*Daemon).pullImage},
		{http.MethodPut, "/v1/images/{ref}/build/{ticket}", owner, false, (*Daemon).buildImage},

		{http.MethodGet, "/v1/kernels", owner, false, (*Daemon).listKernels},
		{http.MethodGet, "/v1/kernels/{ref}", owner, false, (*Daemon).showKernel},
		{http.MethodDelete, "/v1/kernels/{ref}", owner, false, (*Daemon).deleteKernel},
		{http.MethodPost, "/v1/kernels/{ref}/pull", owner, false, (*Daemon).pullKernel},
		{http.MethodPut, "/v1/kernels/{ref}/build/{ticket}", owner, false, (*Daemon).buildKernel},
	}
}
