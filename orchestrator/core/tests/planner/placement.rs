//! What Kubernetes would not allow on the target.

use super::sample::{
    allowed, decide, expression, labels, pod, port, refused, sentences, taint, term, toleration,
};
use orchestrator_core::view::{ExpressionView, PodTermView, TolerationView};

#[test]
fn taints_keep_pods_away_that_do_not_tolerate_them() {
    for effect in ["NoSchedule", "NoExecute"] {
        refused(
            |v| taint(v, effect),
            &format!(
                "TaintNotTolerated: node node2 has the taint dedicated=db:{effect}, which the pod does not tolerate"
            ),
        );
    }
    allowed(|v| taint(v, "PreferNoSchedule"));
    let tolerates = |t: TolerationView| {
        decide(|v| {
            taint(v, "NoExecute");
            pod(v).tolerations = vec![t];
        })
        .is_ok()
    };
    assert!(tolerates(toleration("", "Exists", "", "")));
    assert!(tolerates(toleration(
        "dedicated",
        "Exists",
        "",
        "NoExecute"
    )));
    assert!(tolerates(toleration("dedicated", "Equal", "db", "")));
    assert!(!tolerates(toleration("dedicated", "Equal", "web", "")));
    assert!(!tolerates(toleration(
        "dedicated",
        "Exists",
        "",
        "NoSchedule"
    )));
    assert!(!tolerates(toleration("other", "Exists", "", "")));
    assert!(!tolerates(toleration("dedicated", "Lt", "db", "")));
}

#[test]
fn selectors_and_node_affinity_must_allow_the_target() {
    refused(
        |v| pod(v).node_selector = labels(&[("disk", "ssd")]),
        "NodeSelectorMismatch: the pod's nodeSelector wants disk=ssd, node node2 has it not",
    );
    let affinity = |terms: Vec<Vec<ExpressionView>>| decide(|v| pod(v).node_affinity = terms);
    let no = "NodeAffinityMismatch: the pod's required node affinity does not allow node node2";
    for expression in [
        expression("zone", "In", &["b", "c"]),
        expression("zone", "NotIn", &["a"]),
        expression("disk", "Exists", &[]),
        expression("zone", "DoesNotExist", &[]),
        expression("cores", "Gt", &["8"]),
        expression("cores", "Lt", &["8"]),
        expression("metadata.name", "In", &["node1"]),
    ] {
        assert_eq!(sentences(affinity(vec![vec![expression]])), [no]);
    }
    assert_eq!(
        sentences(affinity(vec![vec![]])),
        [no],
        "an empty term matches nothing"
    );
    for expression in [
        expression("zone", "In", &["a", "c"]),
        expression("disk", "NotIn", &["hdd"]),
        expression("cores", "Gt", &["7"]),
        expression("metadata.name", "In", &["node2"]),
    ] {
        assert!(affinity(vec![vec![expression]]).is_ok());
    }
    let (yes, wrong) = (
        expression("zone", "Exists", &[]),
        expression("disk", "Exists", &[]),
    );
    assert!(
        affinity(vec![vec![wrong.clone()], vec![yes.clone()]]).is_ok(),
        "terms are alternatives"
    );
    assert!(
        affinity(vec![vec![wrong, yes]]).is_err(),
        "expressions are not"
    );
    refused(
        |v| pod(v).unevaluated_constraints = vec!["spread over zone".into()],
        "ConstraintNotEvaluated: the pod has a required constraint that this version cannot evaluate: spread over zone",
    );
}

#[test]
fn neighbours_are_respected_in_both_directions() {
    let host = "kubernetes.io/hostname";
    refused(
        |v| pod(v).affinity = vec![term(host, "cache")],
        "PodAffinityMismatch: the pod must run beside a pod that node node2 does not have",
    );
    allowed(|v| pod(v).affinity = vec![term(host, "other")]);
    refused(
        |v| pod(v).anti_affinity = vec![term(host, "other")],
        "PodAntiAffinityMismatch: the pod must not share a node with default/neighbour, and they would on node node2",
    );
    allowed(|v| pod(v).anti_affinity = vec![term(host, "kuard")]);
    allowed(|v| {
        pod(v).anti_affinity = vec![PodTermView {
            namespaces: vec!["elsewhere".into()],
            ..term(host, "other")
        }];
    });
    refused(
        |v| v.target_pods[0].anti_affinity = vec![term(host, "kuard")],
        "PodAntiAffinityMismatch: default/neighbour must not share a node with this one, and they would on node node2",
    );
    allowed(|v| v.target_pods[0].anti_affinity = vec![term("zone", "kuard")]);
    allowed(|v| pod(v).anti_affinity = vec![term("zone", "other")]);
    refused(
        |v| pod(v).anti_affinity = vec![term("rack", "other")],
        "ConstraintNotEvaluated: the pod has a required constraint that this version cannot evaluate: pod affinity by rack",
    );
}

#[test]
fn host_ports_must_be_free() {
    let taken = "HostPortTaken: host port 8080/TCP of node node2 is taken by default/neighbour";
    for (mine, theirs) in [
        ("0.0.0.0", "10.1.1.1"),
        ("10.1.1.1", "0.0.0.0"),
        ("10.1.1.1", "10.1.1.1"),
    ] {
        refused(
            |v| {
                pod(v).host_ports = vec![port(mine)];
                v.target_pods[0].host_ports = vec![port(theirs)];
            },
            taken,
        );
    }
    allowed(|v| {
        pod(v).host_ports = vec![port("10.1.1.1")];
        v.target_pods[0].host_ports = vec![port("10.1.1.2")];
    });
}
