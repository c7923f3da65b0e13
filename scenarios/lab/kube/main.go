// Command kube is every Kubernetes program of the lab in one binary; the name it is called by picks which.
//
// The lab builds it because no registry it can reach serves the released binaries, while the Go module proxy serves
// their source. One binary instead of six: they share most of their packages, so six would take several times as long
// to link and as much disk. The lab links it as kube-apiserver, kubelet and so on.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	command := commandFor(filepath.Base(os.Args[0]))
	if command == nil {
		fmt.Fprintf(os.Stderr, "kube: called as %q, which is none of its programs\n", os.Args[0])
		os.Exit(2)
	}
	os.Exit(cli.Run(command))
}

// commandFor builds only the command asked for: each registers flags and feature gates of its own as it is made.
func commandFor(name string) *cobra.Command {
	switch name {
	case "kube-apiserver":
		return apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		return controllers.NewControllerManagerCommand()
	case "kube-scheduler":
		return scheduler.NewSchedulerCommand()
	case "kube-proxy":
		return proxy.NewProxyCommand()
	case "kubelet":
		return kubelet.NewKubeletCommand(context.Background())
	case "kubectl":
		return kubectl.NewDefaultKubectlCommand()
	default:
		return nil
	}
}
