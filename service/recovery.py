"""Crash recovery: the automations that restart a run whose process died, and give up after too many crashes."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from prefect.automations import AutomationCore
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.states import Crashed

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient


# The deployments whose runs are restarted. A promotion by hand isn't restarted: by then, a person may have decided
# otherwise.
REPEATED = ["train", "batch", "nightly"]
MAX_CRASHES = 5
# A run gives a sign of life every 30 s (PREFECT_FLOWS_HEARTBEAT_FREQUENCY). The server may be away for two minutes and
# start again without taking a living run for dead.
SILENCE = timedelta(seconds=240)
# The worker needs about three seconds to report a crash and to end what is left of the run's process. With a shorter
# pause, a run could start twice.
PAUSE = timedelta(seconds=20)
RUN = "prefect.flow-run"
BEGUN = {f"{RUN}.{state}" for state in ("Pending", "Submitting", "Running", "Retrying", "Rerunning")}
ENDED = {f"{RUN}.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut")}
WAITS = {f"{RUN}.{state}" for state in ("Scheduled", "Late", "AwaitingRetry", "AwaitingConcurrencySlot", "Paused")}
HEARTBEAT = f"{RUN}.heartbeat"


def automations() -> list[AutomationCore]:
    """What the server watches for: a run without a sign of life, a run that crashed, and a run that always crashes."""
    any_run = {"match": {"prefect.resource.id": f"{RUN}.*"}, "for_each": {"prefect.resource.id"}}
    repeated_run = any_run | {
        "match_related": {"prefect.resource.role": "deployment", "prefect.resource.name": REPEATED}
    }
    return [
        AutomationCore(
            name="mnist: a silent run has crashed",
            description="The run's process and its worker are gone, so nothing else tells the server.",
            trigger=EventTrigger(
                posture=Posture.Proactive,
                after=BEGUN | {HEARTBEAT},
                expect=ENDED | WAITS | {HEARTBEAT},
                within=SILENCE,
                **any_run,
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED, message=f"no sign of life for {SILENCE.total_seconds():.0f} s"
                )
            ],
        ),
        AutomationCore(
            name="mnist: a crashed run goes on",
            description="The run is started again, reuses its finished steps, and trains on from its checkpoint.",
            trigger=EventTrigger(
                posture=Posture.Proactive,
                after={f"{RUN}.Crashed"},
                expect=BEGUN | WAITS | ENDED - {f"{RUN}.Crashed"},
                within=PAUSE,
                **repeated_run,
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.SCHEDULED, name="AwaitingRetry", message="it crashed, and is started again"
                )
            ],
        ),
        AutomationCore(
            name="mnist: a run that crashes each time has failed",
            description="A run that can't succeed must not be started for ever.",
            trigger=EventTrigger(
                posture=Posture.Reactive,
                expect={f"{RUN}.Crashed"},
                threshold=MAX_CRASHES,
                within=timedelta(days=1),
                **repeated_run,
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.FAILED,
                    message=f"it crashed {MAX_CRASHES} times and isn't started again: see the run's logs, and "
                    "server/worker.log under MNIST_HOME; when the cause is removed, press Retry",
                )
            ],
        ),
    ]


async def set_up_recovery(client: "PrefectClient", since: datetime) -> None:
    """Create missing automations, and mark the runs of a lost machine as crashed, so that they are restarted.

    Args:
        client: A client of the server.
        since: When server and worker were started. A run that started later may be alive.
    """
    for automation in automations():
        if not await client.read_automations_by_name(automation.name):
            await client.create_automation(automation)
    going = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING])
    for run in await client.read_flow_runs(flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=going))):
        # A run of the command line may be alive: it has its own process, and perhaps its own server.
        if run.deployment_id and run.state and run.state.timestamp < since:
            await client.set_flow_run_state(run.id, Crashed(message="it ended when server and worker died"))


async def remove_recovery(client: "PrefectClient") -> None:
    """Delete the automations, so that a run which ends now isn't restarted."""
    for automation in automations():
        for existing in await client.read_automations_by_name(automation.name):
            await client.delete_automation(existing.id)
